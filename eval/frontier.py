"""What samples cost under a judge at equal entropy: sharper draws always please it, so two models are compared on their
frontiers, knob by knob: the temperature of the tokens' own draw, or of a flow's that of the codes it heads for, since the
last softmax of many steps has little left to draw."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar

from eval.pictures import Point, plot
from eval.records import over_seeds, written_by
from eval.report import Section


def at_entropy(pairs: Sequence[tuple[float, float]], entropy: float) -> float | None:
    """pairs: (entropy, judge NLL) by knob → the NLL where a line between two neighbours has that entropy; None
    where all samples have more, or less."""
    alike: dict[float, list[float]] = {}
    for where, nll in pairs:
        alike.setdefault(where, []).append(nll)
    line = sorted((where, sum(nlls) / len(nlls)) for where, nlls in alike.items())
    for (low, nll_low), (high, nll_high) in pairwise(line):
        if low <= entropy <= high:
            return nll_low + (nll_high - nll_low) * (entropy - low) / (high - low)
    return line[0][1] if len(line) == 1 and line[0][0] == entropy else None


def at_common(
    one: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]
) -> tuple[float, float, float] | None:
    """Pairs as above of two writers → (entropy, NLL of the first, of the second) at the greatest entropy that both have; a writer
    of one entropy is met there. None where they have none in common."""
    entropy = min(max(pairs)[0] for pairs in (one, other))
    for pairs in (one, other):
        if len({where for where, _ in pairs}) == 1:
            entropy = pairs[0][0]
    found = [at_entropy(pairs, entropy) for pairs in (one, other)]
    return None if None in found else (entropy, *found)  # type: ignore[return-value]


Way = tuple[Any, ...]
"""Subject, block, sampler, network calls of a refined text."""
P = TypeVar("P")
Knobs = tuple[float, float]
"""Temperature of the tokens' draw, score temperature."""


def frontiers(records: Sequence[dict[str, Any]], on: str) -> dict[Way, dict[Knobs, tuple[float, float, float]]]:
    """Way of writing → knobs → (entropy, judge NLL, its standard error), means over training seeds; one knob is turned."""
    found: dict[tuple[Way, Knobs], dict[str, list[dict[str, Any]]]] = {}
    for r in records:
        if (
            r["on"] == on
            and r["metric"] in ("judge_nll", "entropy")
            and r.get("contract", {}).get("temperature") is not None
        ):
            found.setdefault((way(r), knobs(r)), {}).setdefault(r["metric"], []).append(r)
    lines: dict[Way, dict[Knobs, tuple[float, float, float]]] = {}
    for (who, turned), both in found.items():
        if len(both) == 2:
            nll, entropy = over_seeds(both["judge_nll"]), over_seeds(both["entropy"])
            lines.setdefault(who, {})[turned] = (entropy["value"], nll["value"], nll.get("stderr", 0.0))
    return {who: one_knob(line) for who, line in lines.items()}


def knobs(r: dict[str, Any]) -> Knobs:
    return r["contract"]["temperature"], r["contract"].get("score_temperature", 1.0)


def one_knob(points: dict[Knobs, P]) -> dict[Knobs, P]:
    """The longest line along which one knob alone is turned, the score temperature where that is as long as any."""
    lines = [
        {turned: point for turned, point in points.items() if turned[still] == value}
        for still in (0, 1)
        for value in dict.fromkeys(turned[still] for turned in points)
    ]
    return max(lines, key=len, default={})


def way(r: dict[str, Any]) -> Way:
    contract = {name: value for name, value in r["contract"].items() if name != "score_temperature"}
    refined = (contract["sampler"], contract["nfe"]) if "sampler" in contract else (None, None)
    return (written_by({**r, "contract": contract}), contract.get("block", 1), *refined)


def sections(records: Sequence[dict[str, Any]]) -> list[Section]:
    """A picture a text, of the ways of writing that were judged at two temperatures or more; real text is a point."""
    made = []
    for on in dict.fromkeys(r["on"] for r in records if r["metric"] == "judge_nll"):
        series = {
            _name(who): [Point(x, y, error, _label(turned)) for turned, (x, y, error) in sorted(line.items())]
            for who, line in frontiers(records, on).items()
            if len(line) > 1
        }
        if not series:
            continue
        real = {r["metric"]: r["value"] for r in records if (r["on"], r["subject"]) == (on, "data")}
        if {"judge_nll", "entropy"} <= set(real):
            series["real text"] = [Point(real["entropy"], real["judge_nll"], 0.0)]
        text = (
            "Down is more to the judge's taste, right is less of the same word: compare lines at one entropy. Bars are "
            "standard errors."
        )
        picture = plot(series, "unigram entropy of a sample, nats", "judge NLL")
        made.append(Section(f"Judge's frontier: {on}", text, picture))
    return made


def _label(turned: Knobs) -> str:
    temperature, score = turned
    return f"T={temperature:g}" + (f", score T={score:g}" if score != 1 else "")


def _name(who: Way) -> str:
    subject, block, sampler, nfe = who
    if sampler is not None:
        return f"{subject}, {sampler}, nfe {nfe}"
    return subject if block == 1 else f"{subject} K={block}"
