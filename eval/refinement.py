"""Does refinement help? Scores by the number of network calls, and how much a doubling of the calls adds.

    slope = Σ_k w_k y_k,   w_k = (x_k − x̄)/Σ(x − x̄)²,   x = log₂ calls

It is linear in the scores: with the same documents at every number of calls its error is that of the mean of the documents' own
slopes, in which what they share cancels; of means that were measured apart it is (Σ w_k² σ_k²)^½.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.pictures import Point, plot
from eval.records import over_seeds, record, written_by
from eval.report import Section

Z = 1.96
"""Standard errors on each side of a 95% interval."""


def weights(calls: Sequence[int]) -> np.ndarray:
    """w."""
    if len(set(calls)) < 2:
        raise ValueError(f"calls {list(calls)}: a slope needs two numbers of network calls")
    x = np.log2(np.asarray(calls, dtype=float))
    x = x - x.mean()
    return x / (x @ x)


def paired_slope(calls: Sequence[int], values: np.ndarray) -> tuple[float, float | None]:
    """values: (documents, len(calls)). The slope and its standard error over documents; none of one document."""
    each = values @ weights(calls)
    error = float(each.std(ddof=1) / len(each) ** 0.5) if len(each) > 1 else None
    return float(each.mean()), error


def slope_of_means(calls: Sequence[int], means: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    w = weights(calls)
    return float(w @ np.asarray(means)), float(np.sqrt((w**2) @ np.square(errors)))


def slope_record(like: Mapping[str, Any], calls: Sequence[int], value: float, error: float | None) -> dict[str, Any]:
    """like: a record of the scores, whose contract but for its calls is the slope's."""
    contract = {k: v for k, v in like["contract"].items() if k not in ("nfe", "steps")} | {"calls": list(calls)}
    kept = {k: like[k] for k in ("on", "subject", "kind", "train_seed", "n", "run") if k in like}
    more = {"of": like.get("score", like["metric"]), "stderr": error, "stderr_over": like.get("stderr_over", "samples")}
    return record("slope", value, unit="per doubling of the calls", contract=contract, **kept, **more)


def sections(records: Sequence[dict[str, Any]]) -> list[Section]:
    """A picture for each task whose score was measured at two numbers of calls or more, and a table of the slopes."""
    made = []
    scored = [r for r in records if refined(r)]
    for on, score in dict.fromkeys((r["on"], r.get("score", r["metric"])) for r in scored):
        own = [r for r in scored if (r["on"], r.get("score", r["metric"])) == (on, score)]
        series = {name: line for name, line in lines(own).items() if len(line) > 1}
        if not series:
            continue
        slopes = [r for r in records if r["metric"] == "slope" and (r["on"], r["of"]) == (on, score)]
        table = [["model", "a doubling of the calls adds", "95% interval"], *map(_slope_row, slopes)] if slopes else []
        ticks = sorted({p.x for line in series.values() for p in line})
        picture = plot(series, "calls of the network, log₂", score, ticks=ticks)
        text = "Does refinement help? Bars are standard errors."
        made.append(Section(f"Refinement: {on}, {score}", text, picture, table))
    return made


def refined(r: Mapping[str, Any]) -> bool:
    """Whether it is a score of something that is refined in so many calls."""
    contract = r.get("contract", {})
    suite = r["metric"] == "validity" and "sampler" in contract and "stratum" not in r
    return bool(contract.get("nfe")) and (suite or r["metric"] == "harness_score")


def lines(records: Sequence[dict[str, Any]]) -> dict[str, list[Point]]:
    """Way of writing or scoring → points over log₂ calls, means over seeds."""
    found: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for r in records:
        found.setdefault(way(r), {}).setdefault(r["contract"]["nfe"], []).append(r)
    return {
        name: [
            Point(float(np.log2(nfe)), (mean := over_seeds(same))["value"], mean.get("stderr", 0.0))
            for nfe, same in sorted(by_calls.items())
        ]
        for name, by_calls in found.items()
    }


def way(r: Mapping[str, Any]) -> str:
    contract = r["contract"]
    blocks = f"blocks of {contract['block']}" if contract.get("block") else ""
    told = [written_by(r), blocks, contract.get("estimator") or contract.get("sampler") or ""]
    if contract.get("temperature") not in (None, 1, 1.0):
        told.append(f"T = {contract['temperature']:g}")
    return ", ".join(filter(None, told))


def _slope_row(r: dict[str, Any]) -> list[str]:
    error = r.get("stderr")
    interval = "" if error is None else f"{r['value'] - Z * error:+.4f} to {r['value'] + Z * error:+.4f}"
    return [way(r), f"{r['value']:+.4f}", interval]
