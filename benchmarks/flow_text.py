"""Flow language models of text and their baselines, one network and one budget: bounds, and samples under a judge by calls.

    python -m benchmarks.flow_text --seeds 0                       every cell of the plan that is not there yet, then tables and plot
    python -m benchmarks.flow_text --on wikitext2 --seeds 0        subwords: the baselines, ours, and those with learned codes
    python -m benchmarks.flow_text --orderings --seeds 0           the ablations of the published systems, then what they say
    python -m benchmarks.flow_text --presets flow-flm --seeds 0 --set flow.options.times=uniform      another: a cell of its own

A cell trains (or finds) RUNS/ON/PRESET-SEED, after the runs that it begins with or learns from, all of them together on BUDGET
windows; scores 512 held-out windows by the model's first estimator (the bound in continuous time, masked diffusion's NELBO, or exactly; of
a model of blocks at every length); and writes 128 whole windows from nothing at temperatures 0, 0.7 and 1 of the tokens' own draw, in 1, 2,
4, 8 and 16 calls of the network, by every sampler it has, a model of blocks in 1, 2, 4 and 8 steps a block of every length. The judge is
the preset ON-judge, which has never seen a sample; beside its NLL stand entropy and distinct-n, and the same of real windows. Cells and
the plot lie in benchmarks/results/flow-text/, the samples in RUNS/ON/samples-PRESET-SEED.jsonl.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.cells import cell, settings
from benchmarks.flow_runs import Planned, by_calls
from benchmarks.orderings import needed, print_orderings
from eval.flow import load_flow
from eval.flow_perplexity import measure_flow
from eval.flow_samples import draw_flow
from eval.frontier import at_entropy, frontiers
from eval.loading import load_run
from eval.quality import quality
from eval.records import seeds_mean, written_by
from eval.samples import held_out_prompts, write_samples
from flowmap.warp import Warp
from training.config import load_preset, to_dict
from training.loop import train
from training.tasks import build

RESULTS = Path(__file__).parent / "results" / "flow-text"
SUBWORDS: dict[str, Any] = {
    "tokenizer__kind": "bpe", "tokenizer__vocab_size": 2048, "flow__codebook": "embedding", "flow__state_size": 64, "flow__width": 256,
    "optimizer__lr": 1.0e-3,
}  # fmt: skip
"""Two thousand words are learned codes of 64 numbers: a one-hot state would be noise of two thousand."""
FIELDS: dict[str, dict[str, Any]] = {
    "characters": {}, "wikitext2": SUBWORDS, "stdlib": {**SUBWORDS, "data__name": "stdlib"},
}  # fmt: skip
"""Set in every preset, those before it included, by the text."""
OF_SUBWORDS = ("flow-ar", "flow-mdlm", "flow-bd3lm", "flow-leap", "flow-cdcd", "flow-langflow")
PLAN = {
    "characters": (
        "flow-ar", "flow-mdlm", "flow-bd3lm", "flow-flm", "flow-fmlm", "flow-leap", "flow-cfm", "flow-dfm-psd", "flow-dfm-esd",
        "flow-plaid", "flow-cdcd", "flow-langflow", "flow-adapt", "flow-block-flow", "flow-forcing", "flow-elf", "flow-codar",
    ),
    "wikitext2": OF_SUBWORDS,
    "stdlib": OF_SUBWORDS,
}  # fmt: skip
BUDGET = dict.fromkeys(PLAN, 1200 * 64)
"""Windows of 128 that are read in training."""
CALLS = (1, 2, 4, 8, 16)
TEMPERATURES = (0.0, 0.7, 1.0)
WINDOWS, NETWORK_CALLS, NUM = 512, 64, 128
"""Scored windows, calls of the network for each, written windows."""
METRICS = ("judge_nll", "entropy", "distinct_n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", nargs="+", default=["characters"], choices=PLAN)
    parser.add_argument("--presets", nargs="+", help="default: those the plan has")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/flow"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="variants: fields of the preset")
    parser.add_argument("--all", nargs="*", default=[], metavar="KEY=VALUE", help="the same, of the runs before it too")
    parser.add_argument("--orderings", action="store_true", help="the ablations of orderings.py, and what they say")
    parser.add_argument("--kept", action="store_true", help="what is there; trains nothing")
    args = parser.parse_args()
    command, variant = ["python", "-m", "benchmarks.flow_text", *sys.argv[1:]], settings(args.set)
    found, everywhere = [], settings(args.all)
    for on in args.on:
        wanted = [(preset, variant) for preset in args.presets or PLAN[on]]
        if args.orderings:
            wanted = list(needed())
        for (preset, own), seed in product(wanted, args.seeds):
            planned = Planned(preset, args.runs / on, seed, FIELDS[on], own, everywhere, BUDGET[on])
            if made := text_cell(on, planned, command, args.kept):
                print(f"{on} {planned.name}", flush=True)
            found += made
    if found:
        print_bounds(found)
        print_quality(found)
        print_against_teachers(found)
        if args.orderings:
            print_orderings(found)
        if not args.presets:  # a picture is of the whole plan
            name = "-".join(["quality", *args.on, *["orderings"] * args.orderings, *args.all, *args.set])
            plot(found, RESULTS / f"{name.replace('/', '-')}.svg")


def text_cell(on: str, planned: Planned, command: list[str], kept: bool) -> list[dict[str, Any]]:
    judge_config, judge = load_preset(f"{on}-judge"), planned.folder / "judge"

    def measure() -> list[dict[str, Any]]:
        train(judge_config, judge, build)
        folder, spent = planned.train()
        run = load_flow(str(folder))
        bounds: list[dict[str, Any]] = []
        if not getattr(run.model.map, "finishes", False):  # codes of whole windows have no bound over a table
            bounds, _ = measure_flow(run, SimpleNamespace(**{**vars(BOUND), "blocks": run.model.config.block_lengths}))
        prompts = held_out_prompts(run, NUM, 0, run.model.config.length)
        rows = [
            row
            for temperature in TEMPERATURES
            for how in by_calls(run, CALLS, planned.seed, Warp(temperature))
            for row in draw_flow(run, prompts, how, new=run.model.config.length)
        ]
        write_samples(planned.folder / f"samples-{planned.name}.jsonl", rows)
        common: dict[str, Any] = {"on": on, "train_seed": planned.seed, "training_cpu_seconds": round(spent, 1)}
        scored = [*bounds, *quality(rows, load_run(str(judge)), on)]
        return [r | common | {"subject": "data" if r["subject"] == "data" else planned.subject} for r in scored]

    inputs = {
        **planned.inputs(), "judge": to_dict(judge_config), "calls": list(CALLS), "temperatures": list(TEMPERATURES),
        "windows": [WINDOWS, NETWORK_CALLS, NUM],
    }  # fmt: skip
    return cell(RESULTS / f"{on}-{planned.name}.json", inputs, command, measure, kept)


BOUND = SimpleNamespace(
    estimator=None, steps=(1,), calls=NETWORK_CALLS, draws=1, sampler="pushforward", seed=0, data=None, text_column="text",
    split="validation", windows=WINDOWS, fit=WINDOWS, length=None, certify=False, from_zero=False,
)  # fmt: skip
"""What `leaplm perplexity` would be asked."""


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
            sampler, temperature, block, decoder, one_pass = kind
            same = [r for r in own if _kind(r) == kind]
            by = {n: [r for r in same if _column(r) == n] for n in dict.fromkeys(map(_column, same))}
            told = [_three(by[n]) if n in by else "" for n in CALLS]
            if others := [n for n in by if n not in CALLS]:
                told[-1] = f"{_three(by[others[-1]])}" + (f" (nfe {others[-1]})" if others[-1] else "")
            how = (
                (sampler or "")
                + (f", blocks of {block}, by steps" if block else "")
                + (f", {decoder}" if decoder else "")
                + (", one pass" if one_pass else "")
            )
            at = "" if temperature is None else f"{temperature:g}"
            print(f"| {on} | {subject} | {how} | {at} | " + " | ".join(told) + " |")


def _kind(r: dict[str, Any]) -> tuple[Any, ...]:
    """Sampler, temperature, block length, decoder, and whether a model that conditions on itself did without."""
    contract = r["contract"]
    told = (contract.get(name) for name in ("sampler", "temperature", "block", "decoder"))
    return (*told, contract.get("self_conditioning") is False)


def _column(r: dict[str, Any]) -> int | None:
    """Calls of the network; of a model of blocks, steps a block."""
    return r["contract"].get("steps" if r["contract"].get("block") else "nfe")


def print_against_teachers(records: Sequence[dict[str, Any]]) -> None:
    """Few calls of a map against 16 Euler steps of its own network, at the entropy of the latter's samples at temperature 1."""
    print("| on | map | nfe | judge NLL at that entropy | its own Euler at 16 | entropy |")
    print("|---" * 6 + "|")
    for on in dict.fromkeys(r["on"] for r in records):
        lines = frontiers(records, on)
        for subject, block, sampler, nfe in lines:
            teacher = lines.get((subject, block, "euler", max(CALLS)), {}).get(1.0)
            if sampler == "pushforward" and nfe in (1, 2, 4) and teacher is not None:
                entropy, nll, error = teacher
                own = at_entropy([(e, y) for e, y, _ in lines[subject, block, sampler, nfe].values()], entropy)
                shown = "out of its reach" if own is None else f"{own:.3f}"
                print(f"| {on} | {subject} | {nfe} | {shown} | {nll:.3f} ± {error:.3f} | {entropy:.3f} |")


def _three(records: list[dict[str, Any]]) -> str:
    parts = {
        "judge_nll": [r for r in records if r["metric"] == "judge_nll"],
        "entropy": [r for r in records if r["metric"] == "entropy"],
        "distinct_n": [r for r in records if r["metric"] == "distinct_n" and r["ngram"] == 4],
    }
    return " / ".join(_told(parts[metric], 2) for metric in METRICS if parts[metric])


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
        hot = [r for r in judged if r["contract"].get("temperature") == 1.0 and not r["contract"].get("block")]
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


if __name__ == "__main__":
    main()
