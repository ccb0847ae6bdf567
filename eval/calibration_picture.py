"""Acceptance as it was told against acceptance as it is: the reliability diagram of `leaplm accept --calibrate`."""

from collections.abc import Sequence
from typing import Any

from eval.pictures import Point, plot
from eval.report import Section

SHOWN = {
    "raw": "head's own probability",
    "before": "fitted, before the draw",
    "after": "fitted, after the draw",
}
METRICS = ("calibration_error", "brier", "auroc")


def sections(records: Sequence[dict[str, Any]]) -> list[Section]:
    """A picture a run, block and temperature."""
    measured: dict[tuple[Any, ...], dict[str, dict[str, dict[str, Any]]]] = {}
    for r in records:
        if r["metric"] in METRICS and "estimate" in r:
            what = (r["on"], r["subject"], r.get("run"), r["contract"]["block"], r["contract"]["temperature"])
            measured.setdefault(what, {}).setdefault(r["estimate"], {})[r["metric"]] = r
    made = []
    for (on, subject, run, block, temperature), estimates in measured.items():
        series = {
            SHOWN[name]: [Point(told, chance) for told, chance, share in bins if share > 0]
            for name, scores in estimates.items()
            if name in SHOWN and (bins := scores.get("calibration_error", {}).get("details", {}).get("bins"))
        }
        if not series:
            continue
        ends = [end for line in series.values() for p in line for end in (p.x, p.y)]
        series["told as it is"] = [Point(min(ends), min(ends)), Point(max(ends), max(ends))]
        text = (
            "Each point is a fifteenth of all drafted tokens that the rule came to, in the order of what was told of "
            "them: on the diagonal, tokens told to stand with chance a do stand with chance a. Calibration error is the "
            "mean distance to it."
        )
        table = [
            ["estimate", "calibration error", "Brier score", "AUROC"],
            *([SHOWN.get(name, name), *map(cell, map(scores.get, METRICS))] for name, scores in estimates.items()),
        ]
        title = f"Acceptance told and measured: {on}, {subject} K={block}, T={temperature:g}" + (
            f" ({run})" if run else ""
        )
        picture = plot(series, "chance to be accepted, as told", "as the rule has it")
        made.append(Section(title, text, picture, table))
    return made


def cell(r: dict[str, Any] | None) -> str:
    """Value and error; a dash where nothing is defined."""
    if r is None:
        return "–"
    return f"{r['value']:.4f}" + (f" ± {r['stderr']:.4f}" if "stderr" in r else "")
