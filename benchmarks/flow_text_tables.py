"""What the cells of benchmarks.flow_text say: tables of bounds, of samples, of maps against Euler's method, and a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.samplers import RENOISE
from eval.frontier import at_common, at_entropy, frontiers, knobs
from eval.records import mean_error, seeds_mean, written_by

CALLS = (1, 2, 4, 8, 16)
"""Of the network, by which samples are told apart."""
TEACHER = "teacher"
"""Behind a subject: its frozen teacher."""
METRICS = ("judge_nll", "entropy", "distinct_n")


def print_bounds(records: Sequence[dict[str, Any]]) -> None:
    print("| on | model | CPU s | law | nats/token | data error | Monte Carlo error |")
    print("|---" * 7 + "|")
    for on, subject in _pairs(records):
        scored = [r for r in records if (r["on"], r["subject"], r["metric"]) == (on, subject, "nll")]
        for block in dict.fromkeys(r["contract"].get("block") for r in scored):
            rows = [r for r in scored if r["contract"].get("block") == block]
            first, spent = rows[0], max(r["training_cpu_seconds"] for r in rows)
            law = f"{first['contract']['estimator']}, {first['kind']}" + (f", blocks of {block}" if block else "")
            error, noise = (
                f"{first[name]:.4f}" if first.get(name) is not None else "" for name in ("stderr", "monte_carlo")
            )
            print(f"| {on} | {subject} | {spent:.0f} | {law} | {_told(rows, 3)} | {error} | {noise} |")


def print_quality(records: Sequence[dict[str, Any]]) -> None:
    """Judge NLL / entropy / distinct-4 of each, means over seeds."""
    print("| on | model | sampler | temperature | " + " | ".join(f"nfe {n}" for n in CALLS) + " |")
    print("|---" * (4 + len(CALLS)) + "|")
    for on, subject in _pairs(records):
        own = [r for r in records if (r["on"], r["subject"]) == (on, subject) and r["metric"] in METRICS]
        for kind in dict.fromkeys(map(_kind, own)):
            sampler, renoise, temperature, score, block, decoder, delay, one_pass = kind
            same = [r for r in own if _kind(r) == kind]
            by = {n: [r for r in same if _column(r) == n] for n in dict.fromkeys(map(_column, same))}
            told = [_three(by[n]) if n in by else "" for n in CALLS]
            if others := [n for n in by if n not in CALLS]:
                told[-1] = _three(by[others[-1]])
            apart = next((n for r in same if (n := r["contract"].get("decoder_calls"))), None)
            how = (
                (sampler or "")
                + (f" {renoise:g}" if renoise else "")
                + (f", blocks of {block}, by steps" if block else "")
                + (f", {decoder}" if decoder else "")
                + (f", delay {delay}" if delay else "")
                + (f" and {apart} calls of it" if apart else "")
                + (", one pass" if one_pass else "")
            )
            at = "" if temperature is None else f"{temperature:g}" + (f", score {score:g}" if score else "")
            print(f"| {on} | {subject} | {how} | {at} | " + " | ".join(told) + " |")


def _kind(r: dict[str, Any]) -> tuple[Any, ...]:
    """Sampler, share of fresh noise, temperature, score temperature, block length, decoder, delay, and whether a model that conditions on itself did without."""
    contract = r["contract"]
    told = (
        contract.get(name)
        for name in ("sampler", "renoise", "temperature", "score_temperature", "block", "decoder", "delay")
    )
    return (*told, contract.get("self_conditioning") is False)


def _column(r: dict[str, Any]) -> int | None:
    """The first of CALLS that is as many calls of the network, or more; of a model of blocks, steps a block."""
    contract = r["contract"]
    if contract.get("block"):
        return contract["steps"]
    nfe = contract.get("nfe")
    return next((n for n in CALLS if nfe is not None and nfe <= n), nfe)


BELOW = 0.02
"""Nats of entropy below real text, where samplers that save on variety are met."""


def print_at_entropy(records: Sequence[dict[str, Any]]) -> None:
    """Judge NLL where the samples have the entropy of real windows, and BELOW it, along the knob that was turned; means over seeds."""
    print("| on | model | sampler | entropy | " + " | ".join(f"nfe {n}" for n in CALLS) + " |")
    print("|---" * (4 + len(CALLS)) + "|")
    for on in dict.fromkeys(r["on"] for r in records):
        real = [r["value"] for r in records if (r["on"], r["subject"], r["metric"]) == (on, "data", "entropy")]
        lines = {way: _points(line) for way, line in frontiers(records, on).items() if way[1] == 1}  # no blocks
        for subject, sampler in dict.fromkeys((way[0], way[2]) for way in lines):
            for entropy in (real[0] - BELOW, real[0]) if real else ():
                found = [at_entropy(lines.get((subject, 1, sampler, n), []), entropy) for n in CALLS]
                if any(nll is not None for nll in found):
                    told = " | ".join("" if nll is None else f"{nll:.2f}" for nll in found)
                    print(f"| {on} | {subject} | {sampler} | {entropy:.2f} | {told} |")


def print_against_teachers(records: Sequence[dict[str, Any]]) -> None:
    """Few calls of a map against 16 Euler steps, of its own network and of the frozen teacher where it has one, at the greatest entropy
    that the samples of both have; differences are of one seed, their errors over seeds."""
    print("| on | map | nfe | against Euler at 16 of | seeds | entropy | judge NLL | of Euler | difference |")
    print("|---" * 9 + "|")
    seeds = sorted({r["train_seed"] for r in records if "train_seed" in r})
    for on, subject in _pairs(records):

        def lines_of(who: str, on: str = on) -> list[dict[Any, Any]]:
            own = [r for r in records if r["subject"] == who]
            return [frontiers([r for r in own if r.get("train_seed") == seed], on) for seed in seeds]

        own, taught = lines_of(subject), lines_of(f"{subject}: {TEACHER}")
        for way in dict.fromkeys(way for lines in own for way in lines):
            _, block, sampler, nfe = way
            if sampler not in ("pushforward", "restart") or nfe not in (1, 2, 4):
                continue
            alike = way[0].replace(f", renoise {RENOISE:g}", "")  # Euler's method has none
            itself = [lines.get((alike, block, "euler", max(CALLS))) for lines in own]
            teacher = [next(iter(lines.values()), None) for lines in taught]
            for name, others in (("itself", itself), ("its teacher", teacher)):
                pairs = [(lines.get(way), other) for lines, other in zip(own, others, strict=True)]
                met = [at_common(_points(one), _points(other)) for one, other in pairs if one and other]
                if not met:
                    continue
                found = [m for m in met if m is not None]
                told = (
                    " | ".join(_mean(column) for column in zip(*found, strict=True)) if found else "none in common | | "
                )
                apart = _mean([one - other for _, one, other in found]) if found else ""
                print(f"| {on} | {way[0]} | {nfe} | {name} | {len(found)} of {len(met)} | {told} | {apart} |")


def _points(line: dict[Any, tuple[float, float, float]]) -> list[tuple[float, float]]:
    return [(entropy, nll) for entropy, nll, _ in line.values()]


def _mean(values: Sequence[float]) -> str:
    mean, error = mean_error(values)
    return f"{mean:.3f} ± {error:.3f}" if len(values) > 1 else f"{mean:.3f}"


def _three(records: list[dict[str, Any]]) -> str:
    parts = {
        "judge_nll": [r for r in records if r["metric"] == "judge_nll"],
        "entropy": [r for r in records if r["metric"] == "entropy"],
        "distinct_n": [r for r in records if r["metric"] == "distinct_n" and r["ngram"] == 4],
    }
    contract = records[0]["contract"]
    nfe = None if contract.get("block") else contract.get("nfe")
    return " / ".join(_told(parts[metric], 2) for metric in METRICS if parts[metric]) + (
        f" (nfe {nfe})" if nfe not in (None, *CALLS) else ""
    )


def _told(records: list[dict[str, Any]], digits: int) -> str:
    mean = seeds_mean(records)
    error = f" ± {mean['stderr']:.{digits}f}" if len(records) > 1 else ""
    return f"{mean['value']:.{digits}f}{error}"


def _pairs(records: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((r["on"], r["subject"]) for r in records))


def plot(records: Sequence[dict[str, Any]], file: Path) -> None:
    """Judge NLL against calls at temperature 1, a panel a data set; the level of real text."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(r["on"] for r in records))
    figure, axes = pyplot.subplots(1, len(names), figsize=(6.4 * len(names), 4.4), squeeze=False, layout="constrained")
    for axis, on in zip(axes[0], names, strict=True):
        judged = [r for r in records if (r["on"], r["metric"]) == (on, "judge_nll")]
        for r in [r for r in judged if r["subject"] == "data"][:1]:
            axis.axhline(r["value"], color="gray", linestyle=":", label="real text")
        hot = [r for r in judged if "temperature" in r["contract"] and knobs(r) == (1.0, 1.0)]
        hot = [r for r in hot if not r["contract"].get("block")]
        for who, sampler in dict.fromkeys((written_by(r), r["contract"]["sampler"]) for r in hot):
            own = [r for r in hot if (written_by(r), r["contract"]["sampler"]) == (who, sampler)]
            calls = sorted({r["contract"]["nfe"] for r in own})
            means = [seeds_mean([r for r in own if r["contract"]["nfe"] == n])["value"] for n in calls]
            axis.plot(calls, means, marker="o", label=f"{who}, {sampler}")
        axis.set_xscale("log", base=2)
        axis.set(xlabel="calls of the network", ylabel="judge NLL, nats/token", title=on)
        axis.legend(fontsize=6)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
