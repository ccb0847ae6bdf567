"""Few-step images in the report: how far samples are from held-out images, by the steps that drew them, and what memorising shows."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.pictures import Point, plot
from eval.records import over_seeds
from eval.report import Section

Records = Sequence[dict[str, Any]]


def sections(records: Records) -> list[Section]:
    """A picture and a table for each set whose samples were scored at two numbers of steps or more; what real images would score
    stands below the table."""
    made = []
    scored = [r for r in records if r["metric"] == "classifier_fid"]
    for on, split in dict.fromkeys((r["on"], r.get("split", "test")) for r in scored):
        own = [
            r for r in scored if (r["on"], r.get("split", "test")) == (on, split) and "steps" in r.get("contract", {})
        ]
        lines = {way: by_steps(own, way) for way in dict.fromkeys(map(_way, own))}
        lines = {way: line for way, line in lines.items() if len(line) > 1}
        if not lines:
            continue
        counts = sorted({steps for line in lines.values() for steps in line})
        near = {way: by_steps([r for r in records if _nearest(r, on, split)], way) for way in lines}
        series = {
            _name(way): [
                Point(float(np.log2(n)), float(np.log10(r["value"])), _relative(r))
                for n, r in line.items()
                if r["value"] > 0
            ]
            for way, line in lines.items()
        }
        ticks = {float(np.log2(n)): str(n) for n in counts if n & (n - 1) == 0 or n == counts[-1]}
        picture = plot(series, "steps", "log₁₀ classifier-FID", ticks=ticks)
        shown = [n for n in (1, 2, 4, 8, 16, 50) if n in counts]
        head = [
            "objective, sampler",
            *(f"FID, {n} step{'s' * (n > 1)}" for n in shown),
            "nearest training image, by steps",
        ]
        table = [
            head,
            *([_name(way), *(_told(line.get(n)) for n in shown), _all(near[way])] for way, line in lines.items()),
        ]
        made.append(Section(f"Few-step images: {on}, {split}", _floors(records, on, split), picture, table))
    return made


def by_steps(records: Records, way: tuple[str, str]) -> dict[int, dict[str, Any]]:
    """Means over training seeds."""
    found: dict[int, list[dict[str, Any]]] = {}
    for r in records:
        if "steps" in r.get("contract", {}) and _way(r) == way:
            found.setdefault(r["contract"]["steps"], []).append(r)
    return {n: over_seeds(found[n]) for n in sorted(found)}


def _way(r: dict[str, Any]) -> tuple[str, str]:
    return r["subject"], r["contract"].get("sampler", "")


def _name(way: tuple[str, str]) -> str:
    return ", ".join(filter(None, way))


def _nearest(r: dict[str, Any], on: str, split: str) -> bool:
    return (r["metric"], r["on"], r.get("split", "test")) == ("nearest_train_distance", on, split)


def _relative(r: dict[str, Any]) -> float:
    """The error of the logarithm."""
    return float(r.get("stderr") or 0.0) / r["value"] / float(np.log(10)) if r.get("stderr_over") == "seeds" else 0.0


def _told(r: dict[str, Any] | None) -> str:
    if r is None:
        return "–"
    error = f" ± {r['stderr']:.2g}" if r.get("stderr_over") == "seeds" else ""
    return f"{r['value']:.3g}{error}"


def _all(line: dict[int, dict[str, Any]]) -> str:
    return " / ".join(f"{r['value']:.3g} at {n}" for n, r in line.items()) or "–"


def _floors(records: Records, on: str, split: str) -> str:
    real = {
        (r["metric"], r["subject"]): r["value"]
        for r in records
        if r["on"] == on and r.get("split", "test") == split and "steps" not in r.get("contract", {})
    }
    names = {
        ("classifier_fid", "train"): "training images score {:.3g}",
        ("classifier_fid", "train-resampled"): "drawn with repetition, as by heart, {:.3g}",
        ("nearest_train_distance", "test"): "held-out images lie {:.3g} from the nearest training image",
    }
    told = [text.format(real[key]) for key, text in names.items() if key in real]
    return "Lower is nearer to held-out images. " + ("; ".join(told).capitalize() + "." if told else "")
