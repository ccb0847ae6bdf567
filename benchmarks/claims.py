"""Three claims about few-step maps on images, each as records and a plot, from the cells of benchmarks.images.

    python -m benchmarks.claims [--on digits] [--seeds 0 1 2]

1. told-s: the same objective with the s input zeroed, by pushforward and by restart, against steps.
2. matched: the smallest number of Euler steps, and of DDIM steps on the cosine path, that matches IMM's one step.
3. moments: the MMD of three kernels during training against sample quality: Spearman's correlation.

Plots and records lie in benchmarks/results/images/claims/.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.cells import cell
from benchmarks.images import RESULTS, STEPS, config_of, image_cell, read_costs
from eval.images.drawing import draw_images, load_image_run
from eval.images.scorer import ImageScorer
from eval.records import record, seeds_mean, write_records
from flowmap.objectives import InductiveMomentMatching, StateBatch
from flowmap.rng import Rng
from imm.data import Images, load_images
from imm.model import ImageFlow
from training.config import override, to_dict
from training.loop import train
from training.tasks import build

HERE = RESULTS / "claims"
KERNELS = ("laplace", "rbf", "energy")
SNAPSHOTS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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

    told_s(args.on, cells, command)
    matched(args.on, cells, command)
    moments(args.on, args.seeds, round(args.seconds / costs["imm"]), args.runs, command)


def curve(records: Sequence[dict[str, Any]], sampler: str) -> list[dict[str, Any]]:
    """The mean over seeds at each number of steps."""
    chosen = [r for r in records if r["contract"]["sampler"] == sampler]
    return [seeds_mean([r for r in chosen if r["contract"]["steps"] == steps]) for steps in STEPS]


def told_s(on: str, cells: Any, command: list[str]) -> None:
    lines = {}
    for name in ("imm", "lagrangian"):
        lines[name] = curve(cells(name), "pushforward")
        without = cells(f"{name}, s zeroed")
        lines[f"{name}, s zeroed"] = curve(without, "pushforward")
        lines[f"{name}, s zeroed, restart"] = curve(without, "restart")
    keep(on, "told-s", lines, command)
    for name in ("imm", "lagrangian"):
        ratios = [b["value"] / a["value"] for a, b in zip(lines[name], lines[f"{name}, s zeroed"], strict=True)]
        shown = ", ".join(f"{steps}: {ratio:.1f}×" for steps, ratio in zip(STEPS, ratios, strict=True))
        print(f"{on}, {name}: FID without s over FID with it, by steps: {shown}")


def matched(on: str, cells: Any, command: list[str]) -> None:
    lines = {
        "imm": curve(cells("imm"), "pushforward"),
        "flow matching, Euler": curve(cells("flow-matching"), "euler"),
        "flow matching, DDIM on the cosine path": curve(cells("flow-matching, cosine"), "ddim"),
    }
    keep(on, "matched", lines, command)
    goal = lines["imm"][0]["value"]
    for name in list(lines)[1:]:
        n = matching_steps([r["value"] for r in lines[name]], goal)
        print(f"{on}: {name} matches IMM's one step ({goal:.2f}) at {n} steps")


def matching_steps(values: Sequence[float], goal: float) -> str:
    """Between the two numbers of steps that were run, by interpolation of log FID in log steps."""
    for (n, a), (m, b) in zip(zip(STEPS, values, strict=True), zip(STEPS[1:], values[1:], strict=True), strict=False):
        if a > goal >= b:
            share = np.log(a / goal) / np.log(a / b)
            return f"{np.exp(np.log(n) + share * np.log(m / n)):.1f}"
    return "1" if values[0] <= goal else f"more than {STEPS[-1]}"


def moments(on: str, seeds: Sequence[int], steps: int, runs: Path, command: list[str]) -> None:
    """Snapshots of averaged weights through training; their paired-U MMD² on held-out images, their FID."""
    points: list[dict[str, Any]] = []
    for seed in seeds:
        every = max(1, steps // SNAPSHOTS)
        config = override(
            config_of(on, "imm", seed, every * SNAPSHOTS),
            training__checkpoint_every=every,
            training__keep_checkpoints=SNAPSHOTS,
        )

        def measure(config: Any = config, seed: int = seed) -> list[dict[str, Any]]:
            folder = runs / on / f"moments-{seed}"
            train(config, folder, build)
            images = load_images(on, config.data.root)
            scorer = ImageScorer(images)
            found = []
            for path in sorted((folder / "checkpoints").glob("step-*"), key=lambda p: int(p.name[5:])):
                model = load_image_run(str(path)).model
                common = {"on": on, "subject": "imm", "kind": "estimate", "train_seed": seed}
                at = {"trained_steps": int(path.name[5:])}
                for kernel in KERNELS:
                    value = held_out_mmd(model, images, kernel)
                    found.append(record("mmd", value, unit="MMD²", kernel=kernel, n=len(images.test), **common, **at))
                for count in (1, 4):
                    value = scorer.fid(draw_images(model, min(len(images.train), 5000), count, seed=seed).pixels)
                    contract = {"steps": count, "nfe": count, "sampler": "pushforward", "dtype": "float32"}
                    found.append(record("classifier_fid", value, unit="FID", contract=contract, **common, **at))
            return found

        inputs = {"config": to_dict(config), "kernels": list(KERNELS)}
        points += cell(HERE / f"{on}-moments-{seed}.json", inputs, command, measure)
    results = []
    for kernel in KERNELS:
        for count in (1, 4):
            x, y = paired(points, kernel, count)
            value, low, high = rank_correlation(x, y)
            results.append(
                record(
                    "spearman", value, on=on, subject=f"imm, {kernel}", kind="estimate", unit="rank correlation",
                    interval=[low, high], n=len(x), seeds=list(seeds), contract={"steps": count},
                )
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


def paired(points: Sequence[dict[str, Any]], kernel: str, count: int) -> tuple[list[float], list[float]]:
    """MMD² and FID of the same snapshots."""
    where = lambda r: (r["train_seed"], r["trained_steps"])  # noqa: E731
    mmd = {where(r): r["value"] for r in points if r.get("kernel") == kernel}
    fid = {where(r): r["value"] for r in points if r.get("contract", {}).get("steps") == count}
    return [mmd[key] for key in mmd], [fid[key] for key in mmd]


def rank_correlation(x: Sequence[float], y: Sequence[float], resamples: int = 2000) -> tuple[float, float, float]:
    """Spearman's ρ and its bootstrap 95% interval over snapshots (which follow each other in training, so that it
    is narrower than that of independent ones)."""
    a, b = np.array(x), np.array(y)
    picks = np.random.default_rng(0).integers(len(a), size=(resamples, len(a)))
    spread = [spearmanr(a[p], b[p]).statistic for p in picks]
    low, high = np.nanquantile(spread, [0.025, 0.975])
    return float(spearmanr(a, b).statistic), float(low), float(high)


@torch.no_grad()
def held_out_mmd(model: ImageFlow, images: Images, kernel: str, group: int = 32) -> float:
    """Mean paired-U MMD² of IMM's own loss on the test split, in large groups, the same noise every time."""
    objective = InductiveMomentMatching(group_size=group, kernel=kernel, weighted=False)
    test = images.scaling.to_model(images.test)
    size = len(test) // group * group
    sums, count = 0.0, 0.0
    for repeat in range(4):
        for rows in torch.arange(min(size, 2048)).split(group * 8):
            batch = StateBatch(test[rows], model.condition(torch.as_tensor(images.test_labels)[rows]))
            total, groups = objective(model.map, batch, rng=Rng(0, rows, repeat), step=0).metrics["mmd2"]
            sums, count = sums + float(total), count + float(groups)
    return sums / count


def keep(on: str, claim: str, lines: dict[str, list[dict[str, Any]]], command: list[str]) -> None:
    write_records(HERE / f"{on}-{claim}.json", command, [{**r, "subject": n} for n, rs in lines.items() for r in rs])
    figure, (axis,) = _figure(1)
    for name, records in lines.items():
        axis.errorbar(
            STEPS,
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
