"""Heat maps of a suite: first word by last word, true beside drawn."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from eval.pictures import heat_maps
from eval.validity.probe import Probe
from eval.validity.suites import Suite


def suite_heat_map(probes: Sequence[Probe], prompt: str | None = None) -> str:
    """True law, then each probe. prompt: default the suite's first. A one-word answer has its word on both axes."""
    suite = probes[0].suite
    prompt = suite.prompts[0] if prompt is None else prompt
    rows, columns = _axes(suite, prompt)
    panels = {"true": table(suite.laws[prompt], rows, columns)}
    for p in probes:
        title = p.subject if p.subject not in panels else f"{p.subject} ({len(panels)})"
        panels[title] = table(_fractions(p.counts[prompt]), rows, columns)
    return heat_maps(panels, rows, columns)


def table(law: Mapping[str, float], rows: Sequence[str], columns: Sequence[str]) -> np.ndarray:
    """P(first word, last word); what falls on other words is left out."""
    at = ({word: i for i, word in enumerate(axis)} for axis in (rows, columns))
    row_of, column_of = at
    result = np.zeros((len(rows), len(columns)))
    for text, p in law.items():
        words = text.split()
        if words and words[0] in row_of and words[-1] in column_of:
            result[row_of[words[0]], column_of[words[-1]]] += p
    return result


def _axes(suite: Suite, prompt: str) -> tuple[list[str], list[str]]:
    law = suite.laws[prompt]
    return list(dict.fromkeys(t.split()[0] for t in law)), list(dict.fromkeys(t.split()[-1] for t in law))


def _fractions(counts: Counter) -> dict[str, float]:
    total = sum(counts.values())
    return {text: count / total for text, count in counts.items()}
