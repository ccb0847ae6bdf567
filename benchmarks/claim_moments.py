"""The third claim of benchmarks.claims: what the moment loss says of the quality of samples."""

import copy
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import ConstantInputWarning, spearmanr

from benchmarks.cells import cell
from benchmarks.claim_trainings import Trainings, new_figure
from benchmarks.images import config_of, images_of, short_name, version_of
from eval.images.drawing import draw_images, load_image_run
from eval.images.scorer import ImageScorer
from eval.records import record, write_records
from flowmap.backbone import VERSION
from flowmap.objectives import InductiveMomentMatching, StateBatch
from flowmap.rng import Rng
from imm.data import Images
from imm.model import ImageFlow
from training.config import RunConfig, to_dict
from training.loop import train
from training.tasks import build

OBJECTIVE = "imm"
"""Whose snapshots are kept, and whose loss the moments are."""
MOMENTS = 2048
"""Held-out images, at most, that an MMD is over."""


def moments(of: Trainings, kernels: Sequence[str], steps: Sequence[int]) -> None:
    """Snapshots of averaged weights through IMM's training; their paired-U MMD² on held-out images, their FID."""
    points: list[dict[str, Any]] = []
    for seed in of.seeds:
        config = config_of(of.on, OBJECTIVE, seed, of.steps(OBJECTIVE))
        folder = of.runs / of.on / short_name(OBJECTIVE, seed)

        def measure(config: RunConfig = config, folder: Path = folder) -> list[dict[str, Any]]:
            train(config, folder, build)  # where benchmarks.images trained it, there is nothing left to train
            images = images_of(config)
            scorer = ImageScorer(images)
            return [r for path in snapshots(folder) for r in scored(path, config.seed, images, scorer, kernels, steps)]

        inputs = {
            "config": to_dict(config), "kernels": list(kernels), "steps": list(steps), "data": images_of(config).fingerprint,
            "network": VERSION, "objective": version_of(config), "moments": MOMENTS,
        }  # fmt: skip
        points += cell(of.file(f"moments-{seed}.json"), inputs, of.command, measure)
    results = []
    for kernel, count in product(kernels, steps):
        each = [paired([p for p in points if p["train_seed"] == seed], kernel, count) for seed in of.seeds]
        value, low, high = correlation(each)
        results.append(
            record("spearman", value, on=of.on, subject=f"{OBJECTIVE}, {kernel}", kind="estimate", unit="rank correlation",
                   n=sum(len(x) for x, _ in each), seeds=list(of.seeds), interval=[low, high], contract={"steps": count})
        )  # fmt: skip
        print(f"{of.on}: MMD² ({kernel}) and FID at {count} steps: Spearman {value:.2f} ({low:.2f} to {high:.2f})")
    write_records(of.file("moments.json"), of.command, results)
    figure, axes = new_figure(len(kernels))
    for axis, kernel in zip(axes, kernels, strict=True):
        for count in steps:
            axis.scatter(*paired(points, kernel, count), s=8, label=f"{count} step" + "s" * (count > 1))
        axis.set(title=kernel, xlabel="held-out MMD² (paired U)", ylabel="classifier FID", yscale="log")
        axis.set_xscale("symlog", linthresh=1e-6)
    axes[0].legend()
    figure.savefig(of.file("moments.svg"))


def snapshots(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))


def scored(
    path: Path,
    seed: int,
    images: Images,
    scorer: ImageScorer,
    kernels: Sequence[str],
    steps: Sequence[int],
) -> list[dict[str, Any]]:
    """A snapshot's moments by kernel and its FID by steps."""
    model = load_image_run(str(path)).model
    common: dict[str, Any] = {"on": images.name, "subject": OBJECTIVE, "kind": "estimate", "train_seed": seed}
    common |= {"trained_steps": int(path.name[5:])}
    found = []
    for kernel in kernels:
        value, size = held_out_mmd(model, images, kernel)
        found.append(record("mmd", value, unit="MMD²", kernel=kernel, n=size, **common))
    for count in steps:
        value = scorer.fid(draw_images(model, min(len(images.train), 5000), count, seed=seed).pixels)
        contract = {"steps": count, "nfe": count, "sampler": "pushforward", "dtype": "float32"}
        found.append(record("classifier_fid", value, unit="FID", contract=contract, **common))
    return found


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
def held_out_mmd(model: ImageFlow, images: Images, kernel: str, group: int = 32) -> tuple[float, int]:
    """Mean paired-U MMD² of IMM's own loss on the test split, in large groups, the same noise every time; of how many images. In fp64:
    the bandwidth grows without bound where s nears t, and the energy kernel's differences would be the rounding of fp32."""
    objective = InductiveMomentMatching(group_size=group, kernel=kernel, weighted=False)
    model, test = copy.deepcopy(model).double(), images.scaling.to_model(images.test).double()
    size = min(len(test) // group * group, MOMENTS)
    sums, count = 0.0, 0.0
    for repeat in range(4):
        for rows in torch.arange(size).split(group * 8):
            batch = StateBatch(test[rows], model.condition(torch.as_tensor(images.test_labels)[rows]))
            total, groups = objective(model.map, batch, rng=Rng(0, rows, repeat), step=0).metrics["mmd2"]
            sums, count = sums + float(total), count + float(groups)
    return sums / count, size
