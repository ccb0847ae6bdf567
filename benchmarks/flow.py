"""Flow language models on suites, one backbone and one budget: validity and total variation by calls of the network.

    python -m benchmarks.flow                              every cell that is not there yet, then the table and the plot
    python -m benchmarks.flow --on poker --presets flow-poker --seeds 0 --set training.steps=500

A cell trains (or finds) RUNS/ON/PRESET-SEED, and before it the runs that it begins with or learns from, all together on as many
windows as the largest of the plan's trainings reads, then draws --num answers at 1, 2, 4, 8 and 16 calls a sample: a map by
pushforward, which tells the network where each jump lands (by restarts too, if it was taught its jumps), and by Euler's method on the same network; a denoiser by DDIM and DDPM;
masked diffusion by its two samplers, an autoregressive model a token a call.
The last softmax is drawn from; with --temperature 0, a cell of its own, its likeliest token is taken, and all that is random is the
noise it came from. With --exact, cells of their own, the posterior over the suite's listed answers stands in a denoiser's place: what steps alone cost.
`CPU s`: of the training and of those before it. Cells and the plot lie in benchmarks/results/flow/.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.cells import cell, settings
from benchmarks.exact_posterior import idealised
from benchmarks.flow_runs import Planned, by_calls, largest
from benchmarks.samplers import GRID
from eval.flow import load_flow
from eval.records import seeds_mean, written_by
from eval.validity.flow_probe import probe_flow
from eval.validity.suites import load_suite
from flowmap.warp import Warp

RESULTS = Path(__file__).parent / "results" / "flow"
WORDS = ("flow-suite-denoiser", "flow-suite-map", "flow-suite-mdlm", "flow-suite-ar")
PLAN = {
    "poker": ("flow-poker-denoiser", "flow-poker-map", "flow-poker-mdlm", "flow-poker-ar"),
    "sudoku4": WORDS,
    "brackets-16": WORDS,
    "sums-2": WORDS,
    "poker-draw": WORDS,
}
"""Presets of each suite, the denoiser first."""
CALLS = (1, 2, 4, 8, 16)
NUM = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", nargs="+", default=PLAN, help="suites")
    parser.add_argument("--presets", nargs="+", help="default: those the plan has for each suite")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--num", type=int, default=NUM, help="samples a number of calls")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the last softmax")
    parser.add_argument("--exact", action="store_true", help="the exact posterior in the place of the plan's denoiser")
    parser.add_argument("--runs", type=Path, default=Path("runs/flow"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="variants: fields of the preset")
    parser.add_argument("--all", nargs="*", default=[], metavar="KEY=VALUE", help="the same, of the runs before it too")
    parser.add_argument("--kept", action="store_true", help="what is there; trains nothing")
    args = parser.parse_args()
    command, variant = ["python", "-m", "benchmarks.flow", *sys.argv[1:]], settings(args.set)
    found, everywhere = [], settings(args.all)
    for on in args.on:
        presets = args.presets or PLAN.get(on, ())[: 1 if args.exact else None]
        for preset, seed in product(presets, args.seeds):
            planned = suite_planned(on, preset, seed, args.runs, variant, everywhere, presets)
            made = flow_cell(on, planned, args.num, args.temperature, args.exact, command, args.kept)
            found += made
            if made:
                print(f"{on} {preset} seed {seed}", flush=True)
    if found:
        print_table(found)
        told = [f"temperature={args.temperature:g}"] * (args.temperature != 1) + ["exact"] * args.exact
        if not args.presets and set(args.on) == set(PLAN):  # a picture is of the whole plan
            plot(found, RESULTS / ("-".join(["validity", *told, *args.all, *args.set]).replace("/", "-") + ".svg"))


def suite_planned(
    on: str, preset: str, seed: int, runs: Path, variant: dict[str, Any], everywhere: dict[str, Any], beside: Sequence[str] = ()
) -> Planned:  # fmt: skip
    """A preset's training on a suite, and those before it, within the budget of the plan's largest, or of those beside it."""
    budget = largest(PLAN.get(on) or beside or [preset])
    return Planned(preset, runs / on, seed, partial(suite_fields, on), variant, everywhere, budget)


def suite_fields(on: str, preset: str) -> dict[str, Any]:
    return {"data__suite": on, "tokenizer__kind": "words"}


def flow_cell(
    on: str, planned: Planned, num: int, temperature: float, exact: bool, command: list[str], kept: bool
) -> list[dict[str, Any]]:
    suite = load_suite(on)

    def measure() -> list[dict[str, Any]]:
        folder, spent = planned.train()
        run = idealised(load_flow(str(folder)), suite) if exact else load_flow(str(folder))
        subject = planned.subject + ", exact posterior" * exact
        common: dict[str, Any] = {"on": on, "subject": subject, "train_seed": planned.seed}
        common["details"] = {"training_cpu_seconds": round(spent, 1)}
        records: list[dict[str, Any]] = []
        for how in by_calls(run, CALLS, planned.seed, Warp(temperature)):
            made = probe_flow(run, suite, how, num=num).records
            own = [r for r in made if r["metric"] in ("validity", "total_variation") and "stratum" not in r]
            records += [r | common for r in own if r["subject"] == run.subject]
        return records

    other = None if temperature == 1 else temperature
    inputs = {
        **planned.inputs(),
        "law": suite.fingerprint,
        "num": num,
        "calls": list(CALLS),
        "temperature": other,
        "grid": GRID,
        "exact": exact,
    }
    name = "-".join([planned.name, *[f"temperature-{temperature:g}"] * (other is not None), *["exact"] * exact])
    return cell(RESULTS / f"{on}-{name}.json", inputs, command, measure, kept)


def print_table(records: Sequence[dict[str, Any]]) -> None:
    """Means over seeds ± standard error; validity, then total variation."""
    print("| suite | model | sampler | temperature | CPU s | metric | " + " | ".join(f"nfe {n}" for n in CALLS) + " |")
    print("|---" * (6 + len(CALLS)) + "|")
    for row in rows_of(records):
        on, subject, sampler, temperature, metric = row
        means = curve(records, row)
        told = [f"{m['value']:.4f} ± {m.get('stderr', 0.0):.4f}" if (m := means.get(n)) else "" for n in CALLS]
        spent = max(r["details"]["training_cpu_seconds"] for r in records if (r["on"], written_by(r)) == (on, subject))
        print(f"| {on} | {subject} | {sampler} | {temperature:g} | {spent:.0f} | {metric} | " + " | ".join(told) + " |")


Row = tuple[str, str, str, float, str]
"""Suite, model, sampler, temperature, metric."""


def rows_of(records: Sequence[dict[str, Any]]) -> list[Row]:
    return list(dict.fromkeys(map(row_of, records)))


def row_of(r: dict[str, Any]) -> Row:
    return r["on"], written_by(r), r["contract"]["sampler"], r["contract"]["temperature"], r["metric"]


def curve(records: Sequence[dict[str, Any]], row: Row) -> dict[int, dict[str, Any]]:
    """By calls of the network."""
    chosen = [r for r in records if row_of(r) == row]
    calls = sorted({r["contract"]["nfe"] for r in chosen})
    return {n: seeds_mean([r for r in chosen if r["contract"]["nfe"] == n]) for n in calls}


def plot(records: Sequence[dict[str, Any]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    suites = list(dict.fromkeys(r["on"] for r in records))
    figure, axes = pyplot.subplots(
        1, len(suites), figsize=(4.6 * len(suites), 3.6), squeeze=False, layout="constrained"
    )
    for axis, on in zip(axes[0], suites, strict=True):
        for row in rows_of(records):
            suite, subject, sampler, temperature, metric = row
            if (suite, metric) == (on, "validity"):
                means = curve(records, row)
                errors = [2 * m.get("stderr", 0.0) for m in means.values()]
                axis.errorbar(list(means), [m["value"] for m in means.values()], errors, label=f"{subject}, {sampler}, T = {temperature:g}", marker="o")  # fmt: skip
        axis.set_xscale("log", base=2)
        axis.set(xlabel="calls of the network", title=f"validity: {on}")
        axis.legend(fontsize=7)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


if __name__ == "__main__":
    main()
