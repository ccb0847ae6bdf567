"""Anybody's own cases: a JSONL file as a suite, for training and for probing, with no code."""

import json
from pathlib import Path

from eval.validity.suites import Suite


def load_cases(path: Path) -> Suite:
    """Rows {"prompt": …, "texts": […], "p": […] (optional)}; p is normalised, absent it is uniform.
    Rows of one prompt are joined with equal weight; white space is read as single spaces."""
    if not path.is_file():
        raise ValueError(f"cases file {path} does not exist")
    rows: dict[str, list[dict[str, float]]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            prompt, law = _case(line, f"{path}, line {number}")
            rows.setdefault(prompt, []).append(law)
    if not rows:
        raise ValueError(f"cases file {path} holds no rows")
    laws = {}
    for prompt, parts in rows.items():
        laws[prompt] = {
            text: sum(part.get(text, 0.0) for part in parts) / len(parts)
            for text in dict.fromkeys(text for part in parts for text in part)
        }
    return Suite(path.name, laws)


def _case(line: str, where: str) -> tuple[str, dict[str, float]]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg})") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise ValueError(f'{where}: a row is {{"prompt": "…", "texts": ["…", …], "p": [… optional]}}')
    unknown = set(row) - {"prompt", "texts", "p"}
    if unknown:
        raise ValueError(f"{where}: unknown key {min(unknown)!r}; a row has prompt, texts and perhaps p")
    texts, weights = row.get("texts"), row.get("p")
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.split() for t in texts):
        raise ValueError(f"{where}: texts must be a list of non-empty strings")
    if weights is None:
        weights = [1.0] * len(texts)
    if not isinstance(weights, list) or len(weights) != len(texts):
        raise ValueError(f"{where}: p must be a list of {len(texts)} weights, one for each text")
    if not all(isinstance(w, int | float) and not isinstance(w, bool) and 0 <= w < float("inf") for w in weights):
        raise ValueError(f"{where}: p must hold numbers that are not negative")
    if not sum(weights) > 0:
        raise ValueError(f"{where}: p must not be all zero")
    law: dict[str, float] = {}
    for text, weight in zip(texts, weights, strict=True):
        text = " ".join(text.split())
        law[text] = law.get(text, 0.0) + weight / sum(weights)
    return " ".join(row["prompt"].split()), {text: p for text, p in law.items() if p > 0}
