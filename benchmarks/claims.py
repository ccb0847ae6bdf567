"""Three claims about few-step maps on images, each as records and a plot, from the cells of benchmarks.images.

    python -m benchmarks.claims [told-s] [matched] [moments] [--on digits] [--seeds 0 1 2]

told-s: the same objective with the s input zeroed, by pushforward and by restart, against steps: FID over FID, seed by seed.
matched: the smallest number of Euler steps, and of DDIM steps on the cosine path, whose FID is no worse than that of IMM's one
    step, seed by seed; every number near the crossing is run, none interpolated.
moments: the MMD of three kernels during training against sample quality: Spearman's correlation over each seed's own snapshots, and
    its interval.

Plots and records lie in benchmarks/results/images/claims/.
"""

import argparse
import copy
import sys
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import ConstantInputWarning, spearmanr

from benchmarks.cells import cell
from benchmarks.image_objectives import STEPS
from benchmarks.images import RESULTS, config_of, image_cell, images_of, read_costs, short_name
from eval.images.drawing import draw_images, load_image_run
from eval.images.scorer import ImageScorer
from eval.records import record, seeds_mean, write_records
from flowmap.backbone import VERSION
from flowmap.objectives import InductiveMomentMatching, StateBatch
from flowmap.rng import Rng
from imm.data import Images
from imm.model import ImageFlow
from training.config import to_dict
from training.loop import train
from training.tasks import build

HERE = RESULTS / "claims"
CLAIMS = ("told-s", "matched", "moments")
KERNELS = ("laplace", "rbf", "energy")
MOMENTS = 2048
"""Held-out images, at most, that an MMD is over."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", default=[], choices=[*CLAIMS, []], metavar="CLAIM", help=", ".join(CLAIMS))
    parser.add_argument("--on", default="digits", choices=["digits", "mnist"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=240.0, help="of training on one core, as benchmarks.images")
    parser.add_argument("--runs", type=Path, default=Path("runs/images"))
    args = parser.parse_args()
    command = ["python", "-m", "benchmarks.claims", *sys.argv[1:]]
    costs = read_costs(args.on)

    def cells(name: str) -> list[dict[str, Any]]:
        return [
            r
            for seed in args.seeds
            for r in image_cell(args.on, name, seed, round(args.seconds / costs[name]), args.runs, command)
            if r["metric"] == "classifier_fid" and "beside" not in r
        ]

    wanted = args.claims or CLAIMS
    if "told-s" in wanted:
        told_s(args.on, cells, command)
    if "matched" in wanted:
        matched(args.on, cells, command)
    if "moments" in wanted:
        moments(args.on, args.seeds, round(args.seconds / costs["imm"]), args.runs, command)


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


def told_s(on: str, cells: Any, command: list[str]) -> None:
    lines, results = {}, []
    for name in ("imm", "lagrangian"):
        told, without = cells(name), cells(f"{name}, s zeroed")
        lines[name] = curve(told, "pushforward")
        lines[f"{name}, s zeroed"] = curve(without, "pushforward")
        lines[f"{name}, s zeroed, restart"] = curve(without, "restart")
        for sampler in ("pushforward", "restart"):
            results += ratios(on, name, by_seed(told, "pushforward"), by_seed(without, sampler), sampler)
    keep(on, "told-s", lines, command, results)
    for r in results:
        contract = r["contract"]
        print(
            f"{on}, {r['subject']}, {contract['steps']} steps by {contract['sampler']}: FID without s over FID with it {_shown(r)}"
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


def matched(on: str, cells: Any, command: list[str]) -> None:
    imm, straight, curved = cells("imm"), cells("flow-matching"), cells("flow-matching, cosine")
    lines = {
        "imm": curve(imm, "pushforward"),
        "flow matching, Euler": curve(straight, "euler"),
        "flow matching, DDIM on the cosine path": curve(curved, "ddim"),
    }
    goals, results = by_seed(imm, "pushforward"), []
    for name, rows, sampler in (("flow-matching", straight, "euler"), ("flow-matching, cosine", curved, "ddim")):
        each = []
        for seed, fids in by_seed(rows, sampler).items():
            n = matching_steps(fids, goals[seed][1])
            each.append(
                record("matching_steps", n or max(fids), on=on, subject=name, kind="estimate", unit="steps", train_seed=seed,
                       contract={"sampler": sampler}, reached=n is not None, goal=goals[seed][1])
            )  # fmt: skip
        results += each
        told = ", ".join(f"{r['value']:.0f}" if r["reached"] else f"more than {r['value']:.0f}" for r in each)
        print(f"{on}: {name} matches IMM's one step at {told} steps of {sampler}, seed by seed")
    keep(on, "matched", lines, command, results)


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


def moments(on: str, seeds: Sequence[int], steps: int, runs: Path, command: list[str]) -> None:
    """Snapshots of averaged weights through training; their paired-U MMD² on held-out images, their FID."""
    points: list[dict[str, Any]] = []
    for seed in seeds:
        config = config_of(on, "imm", seed, steps)

        def measure(config: Any = config, seed: int = seed) -> list[dict[str, Any]]:
            folder = runs / on / short_name("imm", seed)
            train(config, folder, build)  # where benchmarks.images trained it, there is nothing left to train
            images = images_of(config)
            scorer = ImageScorer(images)
            found = []
            for path in sorted((folder / "checkpoints").glob("step-*"), key=lambda p: int(p.name[5:])):
                model = load_image_run(str(path)).model
                common = {"on": on, "subject": "imm", "kind": "estimate", "train_seed": seed}
                at = {"trained_steps": int(path.name[5:])}
                for kernel in KERNELS:
                    value = held_out_mmd(model, images, kernel)
                    found.append(
                        record(
                            "mmd", value, unit="MMD²", kernel=kernel, n=min(len(images.test), MOMENTS), **common, **at
                        )
                    )
                for count in (1, 4):
                    value = scorer.fid(draw_images(model, min(len(images.train), 5000), count, seed=seed).pixels)
                    contract = {"steps": count, "nfe": count, "sampler": "pushforward", "dtype": "float32"}
                    found.append(record("classifier_fid", value, unit="FID", contract=contract, **common, **at))
            return found

        inputs = {"config": to_dict(config), "kernels": list(KERNELS), "network": VERSION}
        points += cell(HERE / f"{on}-moments-{seed}.json", inputs, command, measure)
    results = []
    for kernel, count in product(KERNELS, (1, 4)):
        each = [paired([p for p in points if p["train_seed"] == seed], kernel, count) for seed in seeds]
        value, low, high = correlation(each)
        results.append(
            record("spearman", value, on=on, subject=f"imm, {kernel}", kind="estimate", unit="rank correlation", n=sum(len(x) for x, _ in each),
                   seeds=list(seeds), interval=[low, high], contract={"steps": count})
        )  # fmt: skip
        print(f"{on}: MMD² ({kernel}) and FID at {count} steps: Spearman {value:.2f} ({low:.2f} to {high:.2f})")
    write_records(HERE / f"{on}-moments.json", command, results)
    figure, axes = _figure(len(KERNELS))
    for axis, kernel in zip(axes, KERNELS, strict=True):
        for count in (1, 4):
            axis.scatter(*paired(points, kernel, count), s=8, label=f"{count} step" + "s" * (count > 1))
        axis.set(title=kernel, xlabel="held-out MMD² (paired U)", ylabel="classifier FID", yscale="log")
        axis.set_xscale("symlog", linthresh=1e-6)
    axes[0].legend()
    figure.savefig(HERE / f"{on}-moments.svg")


def correlation(each: Sequence[tuple[list[float], list[float]]], resamples: int = 1000) -> tuple[float, float, float]:
    """Spearman's, in the mean over seeds, and its 95% interval by the bootstrap over each seed's snapshots. Neighbouring snapshots
    resemble each other, which the interval does not know: it is too narrow rather than too wide."""
    draws, found = np.random.default_rng(0), []
    for n in range(resamples + 1):
        values = []
        for x, y in each:
            rows = draws.integers(len(x), size=len(x)) if n else np.arange(len(x))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConstantInputWarning)  # of a resample of one snapshot there is none
                values.append(spearmanr(np.array(x)[rows], np.array(y)[rows]).statistic)
        found.append(float(np.mean(values)))
    low, high = np.nanquantile(found[1:], [0.025, 0.975])
    return found[0], float(low), float(high)


def paired(points: Sequence[dict[str, Any]], kernel: str, count: int) -> tuple[list[float], list[float]]:
    """MMD² and FID of the same snapshots."""
    where = lambda r: (r["train_seed"], r["trained_steps"])  # noqa: E731
    mmd = {where(r): r["value"] for r in points if r.get("kernel") == kernel}
    fid = {where(r): r["value"] for r in points if r.get("contract", {}).get("steps") == count}
    return [mmd[key] for key in mmd], [fid[key] for key in mmd]


@torch.no_grad()
def held_out_mmd(model: ImageFlow, images: Images, kernel: str, group: int = 32) -> float:
    """Mean paired-U MMD² of IMM's own loss on the test split, in large groups, the same noise every time. In fp64: the bandwidth grows
    without bound where s nears t, and the energy kernel's differences would be the rounding of fp32."""
    objective = InductiveMomentMatching(group_size=group, kernel=kernel, weighted=False)
    model, test = copy.deepcopy(model).double(), images.scaling.to_model(images.test).double()
    size = len(test) // group * group
    sums, count = 0.0, 0.0
    for repeat in range(4):
        for rows in torch.arange(min(size, MOMENTS)).split(group * 8):
            batch = StateBatch(test[rows], model.condition(torch.as_tensor(images.test_labels)[rows]))
            total, groups = objective(model.map, batch, rng=Rng(0, rows, repeat), step=0).metrics["mmd2"]
            sums, count = sums + float(total), count + float(groups)
    return sums / count


def keep(
    on: str, claim: str, lines: dict[str, list[dict[str, Any]]], command: list[str], results: list[dict[str, Any]]
) -> None:
    """The curves with what is claimed of them, and their picture."""
    curves = [{**r, "subject": n} for n, rs in lines.items() for r in rs]
    write_records(HERE / f"{on}-{claim}.json", command, [*curves, *results])
    figure, (axis,) = _figure(1)
    for name, records in lines.items():
        axis.errorbar(
            [r["contract"]["steps"] for r in records],
            [r["value"] for r in records],
            [r.get("stderr", 0.0) for r in records],
            label=name,
            marker="o",
            linestyle="--" if "zeroed" in name else "-",
        )
    axis.set(xscale="log", yscale="log", xlabel="steps", ylabel="classifier FID", title=f"{on}: {claim}")
    axis.set_xticks(STEPS, [str(n) for n in STEPS])
    axis.legend()
    figure.savefig(HERE / f"{on}-{claim}.svg")


def _figure(count: int) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    HERE.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(1, count, figsize=(5 * count, 4), constrained_layout=True, squeeze=False)
    return figure, axes[0]


if __name__ == "__main__":
    main()
