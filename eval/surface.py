"""PPL(B, K) as a picture: what a token costs by block length and refinement steps, and how fast it is written.

    nats per token against K, a line for each block length B; the autoregressive model and the law's entropy as level lines
    the same numbers against tokens per second
    joint heads: nats per token of a block against their own refinement steps, from independent tokens to the exact law

Built from flat records alone, for the report and for `benchmarks.surface`.
"""

import math
from collections.abc import Sequence
from typing import Any

from eval.pictures import Point, plot
from eval.records import seeds_mean
from eval.report import Section

Records = list[dict[str, Any]]
ENDLESS = "∞"
"""How the bound in continuous time is named on the axis of steps."""
TEXT = (
    "Down is better. K ancestral steps are K + 1 calls of the network for each block of B tokens, behind the clean text before "
    "it. Values are upper bounds on what the sampler of that many steps spends, ∞ the bound in continuous time; a level line "
    "is exact. "
)


def surface_sections(records: Records) -> list[Section]:
    """One for each text on which a model was scored at two points of the plane or more, and one for its heads."""
    sections = []
    for on in dict.fromkeys(r["on"] for r in records):
        mine = [r for r in records if r["on"] == on]
        points = by_block(mine)
        if sum(map(len, points.values())) > 1 and any(len(line) > 1 for line in points.values()):
            sections.append(Section(f"Likelihood by block length and steps: {on}", TEXT, by_steps(mine)))
            if speeds := by_speed(mine):
                text = "The same numbers against the speed of the sampler that they are bounds of; " + how_timed(mine)
                sections.append(Section(f"Likelihood against speed: {on}", text, speeds))
        if picture := of_heads(mine):
            text = (
                "A block after one pass of the trunk, scored by the head alone, against the head's own refinement steps; level "
                "lines are heads without steps. Lines of steps are bounds, levels exact where the legend does not say bound."
            )
            sections.append(Section(f"Joint heads, from independent to exact: {on}", text, picture))
    return sections


def by_block(records: Records) -> dict[str, dict[int | str, dict[str, Any]]]:
    """Line → K → mean over seeds. A line is a model at a block length; from zero is a law of its own."""
    found: dict[str, dict[int | str, Records]] = {}
    for r in records:
        contract = r.get("contract", {})
        estimator = contract.get("estimator")
        if r["metric"] != "nll" or estimator not in ("k-step", "vlb") or contract.get("state") == "zero":
            continue
        steps = ENDLESS if estimator == "vlb" else contract["steps"]
        found.setdefault(line_of(r), {}).setdefault(steps, []).append(r)
    return {line: {k: one_a_seed(seeds) for k, seeds in points.items()} for line, points in found.items()}


def line_of(r: dict[str, Any]) -> str:
    block = r["contract"].get("block")
    return r["subject"] + ("" if block is None else f", B = {block}")


def one_a_seed(records: Records) -> dict[str, Any]:
    return seeds_mean(list({r.get("train_seed"): r for r in records}.values()))


def levels(records: Records) -> dict[str, dict[str, Any]]:
    """What no step changes: exact numbers of the same text."""
    found: dict[str, Records] = {}
    for r in records:
        contract = r.get("contract", {})
        if r["metric"] == "entropy" and r["unit"] == "nats/token" and r["kind"] == "exact":
            found.setdefault("entropy of the law", []).append(r)
        elif r["metric"] == "nll" and contract.get("estimator") == "exact":
            found.setdefault(r["subject"], []).append(r)
        elif (
            r["metric"] == "nll"
            and contract.get("state") == "zero"
            and contract["block"] == 1
            and not contract["steps"]
        ):
            found.setdefault(f"{line_of(r)}, K = 0 from zero", []).append(r)
    return {name: one_a_seed(seeds) for name, seeds in found.items()}


def by_steps(records: Records) -> str:
    lines = by_block(records)
    places = {k: place_of(k, lines) for line in lines.values() for k in line}
    series = {line: [point(places[k], r) for k, r in _sorted(points)] for line, points in lines.items()}
    ends = min(places.values()), max(places.values())
    series |= {name: [point(x, r) for x in ends] for name, r in levels(records).items()}
    return plot(series, "K, refinement steps a block", "nats per token", ticks={x: str(k) for k, x in places.items()})


def place_of(k: int | str, lines: dict[str, dict[int | str, dict[str, Any]]]) -> float:
    """log₂ of the calls a block; ∞ one place behind the largest."""
    last = max((n for line in lines.values() for n in line if isinstance(n, int)), default=0)
    return math.log2(last + 1) + 1 if isinstance(k, str) else math.log2(k + 1)


def by_speed(records: Records) -> str:
    """Every model and number of steps that was both scored and timed."""
    timed: dict[tuple[str, Any], Records] = {}
    for r in records:
        if r["metric"] == "tokens_per_second":
            timed.setdefault((line_of(r), r["contract"].get("steps")), []).append(r)
    series: dict[str, list[Point]] = {}
    for line, points in by_block(records).items():
        for k, r in _sorted(points):
            if (line, k) in timed:
                x = math.log10(one_a_seed(timed[line, k])["value"])
                series.setdefault(line, []).append(point(x, r, f"K = {k}"))
    for name, r in levels(records).items():
        if (name, None) in timed:
            series[name] = [point(math.log10(one_a_seed(timed[name, None])["value"]), r)]
    if not series:
        return ""
    xs = [p.x for line in series.values() for p in line]
    ticks = {
        math.log10(m * 10.0**e): f"{m * 10**e:g}" if e < 3 else f"{m * 10 ** (e - 3):g}k"
        for e in range(math.floor(min(xs)), math.ceil(max(xs)) + 1)
        for m in (1, 3)
        if min(xs) <= math.log10(m * 10.0**e) <= max(xs)
    }
    return plot(series, "tokens per second", "nats per token", ticks=ticks)


def how_timed(records: Records) -> str:
    contract = next(r["contract"] for r in records if r["metric"] == "tokens_per_second")
    return f"{contract['batch']} windows at once, {contract['device']}, {contract['threads']} thread(s)."


def of_heads(records: Records) -> str:
    """Empty where no head was scored at two numbers of steps. The trunk's own chain is scored on its own targets."""
    found: dict[tuple[str, int], dict[int, Records]] = {}
    for r in records:
        if r["metric"] == "block_nll" and r["unit"] == "nats/token":
            contract = r["contract"]
            name = r["subject"] + (", bound" if r["kind"] == "bound" else "")
            found.setdefault((name, contract["block"]), {}).setdefault(contract.get("steps", 1), []).append(r)
    if not any(len(steps) > 1 for steps in found.values()):
        return ""
    last = max(n for steps in found.values() for n in steps)
    blocks = {block for _, block in found}
    series = {}
    for (name, block), steps in found.items():
        means = {n: one_a_seed(seeds) for n, seeds in sorted(steps.items())}
        ends = means if len(means) > 1 else dict.fromkeys((1, last), next(iter(means.values())))
        label = name if len(blocks) == 1 else f"{name}, K = {block}"
        series[label] = [point(n, r) for n, r in ends.items()]
    for r in [r for r in records if r["metric"] == "entropy" and r["unit"] == "nats/token" and r["kind"] == "exact"][
        :1
    ]:
        series["entropy of the law"] = [point(n, r) for n in (1, last)]
    return plot(series, "refinement steps of the head", "nats per token", ticks=range(1, last + 1))


def point(x: float, r: dict[str, Any], label: str = "") -> Point:
    return Point(x, r["value"], r.get("stderr", 0.0), label)


def _sorted(points: dict[int | str, dict[str, Any]]) -> Sequence[tuple[int | str, dict[str, Any]]]:
    return sorted(points.items(), key=lambda item: math.inf if isinstance(item[0], str) else item[0])
