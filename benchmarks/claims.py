"""Three claims about few-step maps on images, each a preset of configs/claims that ends in records and a plot.

    python -m benchmarks.claims [told-s] [matched] [moments] [--on digits mnist] [--seeds 0 1 2]

told-s: the same objective with the s input zeroed, by pushforward and by restart, against steps: FID over FID, seed by seed.
matched: the smallest number of Euler steps, and of DDIM steps on the cosine path, whose FID is no worse than that of IMM's one
    step, seed by seed; every number near the crossing is run, none interpolated.
moments: the MMD of three kernels during training against sample quality: Spearman's correlation over each seed's own snapshots, and
    its interval.

Trainings are the cells of benchmarks.images, trained where they are not there yet. Plots and records lie in
benchmarks/results/images/claims/.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from benchmarks.claim_moments import moments
from benchmarks.claim_trainings import Trainings, new_figure
from benchmarks.image_objectives import STEPS
from eval.records import record, seeds_mean, write_records
from training.config import PRESETS

PLANS = PRESETS / "claims"


def main() -> None:
    known = claims()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", default=[], choices=[*known, []], metavar="CLAIM", help=", ".join(known))
    parser.add_argument("--on", nargs="+", default=["digits"], choices=["digits", "mnist"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=240.0, help="of training on one core, as benchmarks.images")
    parser.add_argument("--runs", type=Path, default=Path("runs/images"))
    args = parser.parse_args()
    for on, claim in product(args.on, args.claims or known):
        CLAIMS[claim](
            Trainings(on, args.seeds, args.seconds, args.runs, ["python", "-m", "benchmarks.claims", *sys.argv[1:]]),
            **known[claim],
        )


def claims() -> dict[str, dict[str, Any]]:
    """The presets by name."""
    return {file.stem: yaml.safe_load(file.read_text()) for file in sorted(PLANS.glob("*.yaml"))}


def by_seed(records: Sequence[dict[str, Any]], sampler: str) -> dict[int, dict[int, float]]:
    """seed → FID at each number of steps."""
    found: dict[int, dict[int, float]] = {}
    for r in records:
        if r["contract"]["sampler"] == sampler:
            found.setdefault(r["train_seed"], {})[r["contract"]["steps"]] = r["value"]
    return found


def curve(records: Sequence[dict[str, Any]], sampler: str) -> list[dict[str, Any]]:
    """The mean over seeds at each number of steps that was run."""
    chosen = [r for r in records if r["contract"]["sampler"] == sampler]
    counts = sorted({r["contract"]["steps"] for r in chosen})
    return [seeds_mean([r for r in chosen if r["contract"]["steps"] == steps]) for steps in counts]


def told_s(of: Trainings, objectives: Sequence[str], samplers: Sequence[str]) -> None:
    lines, results = {}, []
    for name in objectives:
        told, without = of.fids(name), of.fids(f"{name}, s zeroed")
        lines[name] = curve(told, "pushforward")
        for sampler in samplers:
            told_of = "" if sampler == "pushforward" else f", {sampler}"
            lines[f"{name}, s zeroed{told_of}"] = curve(without, sampler)
            results += ratios(of.on, name, by_seed(told, "pushforward"), by_seed(without, sampler), sampler)
    keep(of, "told-s", lines, results)
    for r in results:
        contract = r["contract"]
        print(
            f"{of.on}, {r['subject']}, {contract['steps']} steps by {contract['sampler']}: FID without s over FID with it {_shown(r)}"
        )


def ratios(
    on: str, name: str, told: dict[int, dict[int, float]], without: dict[int, dict[int, float]], sampler: str
) -> list[dict[str, Any]]:
    """FID without s over FID with it at each number of steps, means over the seeds that have both."""
    made = []
    for steps in STEPS:
        each = [
            record("fid_ratio", without[seed][steps] / told[seed][steps], on=on, subject=f"{name}, s zeroed", kind="estimate",
                   unit="× with s", train_seed=seed, contract={"steps": steps, "nfe": steps, "sampler": sampler})
            for seed in sorted(set(told) & set(without))
        ]  # fmt: skip
        made.append(seeds_mean(each))
    return made


def matched(of: Trainings, objective: str, against: dict[str, str]) -> None:
    """against: name of a training → how it is drawn from."""
    one = of.fids(objective)
    goals, lines, results = by_seed(one, "pushforward"), {objective: curve(one, "pushforward")}, []
    for name, sampler in against.items():
        rows, each = of.fids(name), []
        lines[f"{name}, {sampler}"] = curve(rows, sampler)
        for seed, fids in by_seed(rows, sampler).items():
            n = matching_steps(fids, goals[seed][1])
            each.append(
                record("matching_steps", n or max(fids), on=of.on, subject=name, kind="estimate", unit="steps", train_seed=seed,
                       contract={"sampler": sampler}, reached=n is not None, goal=goals[seed][1])
            )  # fmt: skip
        results += each
        told = ", ".join(f"{r['value']:.0f}" if r["reached"] else f"more than {r['value']:.0f}" for r in each)
        print(f"{of.on}: {name} matches one step of {objective} at {told} steps of {sampler}, seed by seed")
    keep(of, "matched", lines, results)


def matching_steps(fids: dict[int, float], goal: float) -> int | None:
    """The fewest steps of those that were run that are no worse than goal, with all larger numbers of steps; None where none are."""
    found = None
    for steps in sorted(fids, reverse=True):
        if fids[steps] > goal:
            break
        found = steps
    return found


def _shown(r: dict[str, Any]) -> str:
    return f"{r['value']:.2f}" + (f" ± {r['stderr']:.2f}" if r.get("stderr_over") == "seeds" else "")


def keep(of: Trainings, claim: str, lines: dict[str, list[dict[str, Any]]], results: list[dict[str, Any]]) -> None:
    """The curves with what is claimed of them, and their picture."""
    curves = [{**r, "subject": n} for n, rs in lines.items() for r in rs]
    write_records(of.file(f"{claim}.json"), of.command, [*curves, *results])
    figure, (axis,) = new_figure(1)
    for name, records in lines.items():
        axis.errorbar(
            [r["contract"]["steps"] for r in records],
            [r["value"] for r in records],
            [r.get("stderr", 0.0) for r in records],
            label=name,
            marker="o",
            linestyle="--" if "zeroed" in name else "-",
        )
    axis.set(xscale="log", yscale="log", xlabel="steps", ylabel="classifier FID", title=f"{of.on}: {claim}")
    axis.set_xticks(STEPS, [str(n) for n in STEPS])
    axis.legend()
    figure.savefig(of.file(f"{claim}.svg"))


CLAIMS = {"told-s": told_s, "matched": matched, "moments": moments}


if __name__ == "__main__":
    main()
