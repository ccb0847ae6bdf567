"""Few-step image objectives on one GPU: equal training time, one network, no classes, classifier-FID at 1 to 50 steps.

    python -m benchmarks.gpu.images --prepare .gpu/cifar10.npz          once, where the set lies (LEAPLM_DATA)
    python -m benchmarks.gpu.images --data .gpu/cifar10.npz --out images.json --objectives imm flow-matching

Four objectives of 80 seconds end within 8 minutes, features and samples included; none is begun after --limit. Beside each FID stands
what training images score, and what they score drawn with repetition; beside the nearest training image of a sample that of a test image. Imports torch, transformers,
safetensors, numpy and the packages of this project that need no more.
"""

import argparse
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.fit_map import fit_map
from benchmarks.image_objectives import FIELDS, STEPS, counts_of, options_of
from eval.images.classifier import load_classifier
from eval.images.distances import nearest
from eval.images.grid import write_grid
from eval.records import record, write_records
from flowmap.objectives import OBJECTIVES, StateBatch
from flowmap.rng import Rng
from flowmap.samplers import Guided, sample, uniform_times
from imm.data import Images, fingerprint, load_images
from imm.model import ImageFlow, ImageFlowConfig
from training.objectives import build_objective

PICTURES = find_spec("PIL") is not None  # the one thing that is left out where it is not
PACED = 1000  # what is scheduled is told a thousandth of the time for a step
NAMES = ("flow-matching", "imm", "lagrangian", "progressive")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", type=Path, help="write the set to this file and stop")
    parser.add_argument("--name", default="cifar10")
    parser.add_argument("--keep", type=int, default=14_000, help="--prepare: training images kept, so that it travels")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--objectives", nargs="+", default=NAMES, choices=list(OBJECTIVES))
    parser.add_argument("--seconds", type=float, default=80.0, help="of training, for each objective")
    parser.add_argument("--limit", type=float, default=400.0, help="seconds after which no further objective is begun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--patch", type=int, default=2)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--depth", type=int, default=10)
    parser.add_argument("--num", type=int, default=5000, help="samples to score")
    args = parser.parse_args()
    if args.prepare:
        return prepare(args.prepare, args.name, args.keep)
    if not args.data or not args.out:
        parser.error("--data and --out are needed, or --prepare")
    start = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    images = read(args.data)
    classifier = load_classifier(images)
    real = classifier(images.test)[0].double()
    known = flat(images.train).to(device)
    records = floors(images, classifier, real, known, args)
    for name in args.objectives:
        if time.monotonic() - start > args.limit:
            print(f"left out, since {args.limit:g} s are over: {name}", flush=True)
            continue
        model, steps = train(name, images, args, device)
        for count in counts_of(model.config.sampler, model.config.most_steps, STEPS):
            pixels, nfe = draw(model, count, args, device)
            value = frechet(classifier(pixels)[0].double(), real)
            near = float(nearest(flat(pixels).to(device), known).mean())
            contract = {"steps": count, "nfe": nfe, "sampler": model.config.sampler, "dtype": "bfloat16", "ema": 0.999}
            records += [
                record(
                    metric, found, on=images.name, subject=name, unit=unit, kind="estimate", n=len(pixels),
                    contract=contract, train_seed=args.seed, trained_steps=steps, split="test", classifier=classifier.digest,
                )
                for metric, found, unit in (("classifier_fid", value, "FID"), ("nearest_train_distance", near, "L2"))
            ]  # fmt: skip
            print(f"{name}: {count} steps, FID {value:.2f}, after {steps} training steps", flush=True)
            write_records(args.out, ["python", "-m", "benchmarks.gpu.images", *sys.argv[1:]], records)
            if count in (1, 4) and PICTURES:
                write_grid(args.out.with_name(f"{name}-{count}.png"), pixels[:100], 10, 2)


def floors(images: Images, classifier: Any, real: torch.Tensor, known: torch.Tensor, args: Any) -> list[dict[str, Any]]:
    """What the set itself would score in the samples' place."""
    rng = Rng(args.seed)
    some = images.train[
        torch.randperm(len(images.train), generator=torch.Generator().manual_seed(0)).numpy()[: args.num]
    ]
    again = images.train[(rng.uniform("again", args.num, dtype=torch.float64) * len(images.train)).long().numpy()]
    near = float(nearest(flat(images.test[: args.num]).to(known.device), known).mean())
    fids = {"train": some, "train-resampled": again}
    common: dict[str, Any] = {"on": images.name, "kind": "estimate", "split": "test", "n": args.num}
    return [
        *(
            record("classifier_fid", frechet(classifier(x)[0].double(), real), subject=name, unit="FID", **common)
            for name, x in fids.items()
        ),
        record("nearest_train_distance", near, subject="test", unit="L2", **common),
    ]


def flat(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.reshape(len(pixels), -1)).float() / 255


def prepare(file: Path, name: str, keep: int) -> None:
    images = load_images(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    fields = {f: getattr(images, f) for f in ("train", "train_labels", "test", "test_labels")}
    fields |= {"train": fields["train"][:keep], "train_labels": fields["train_labels"][:keep]}
    fields |= {"test": fields["test"][:5000], "test_labels": fields["test_labels"][:5000]}
    np.savez_compressed(file, name=name, **fields)
    print(f"{file}: {file.stat().st_size / 2**20:.0f} MiB")


def read(file: Path) -> Images:
    found = np.load(file)
    arrays = [found[f] for f in ("train", "train_labels", "test", "test_labels")]
    name, classes = str(found["name"]), int(arrays[1].max()) + 1
    return Images(*arrays, classes, name, fingerprint(arrays))


def train(name: str, images: Images, args: Any, device: torch.device) -> tuple[ImageFlow, int]:
    """For the given time; returns the averaged weights and how many steps there were."""
    objective = build_objective("image", SimpleNamespace(objective=name, options=options_of(name, PACED)), OBJECTIVES)
    channels, height, width = images.shape
    torch.manual_seed(args.seed)
    config = ImageFlowConfig(  # type: ignore[call-arg]
        channels=channels, height=height, width_pixels=width, patch=args.patch, num_classes=0,
        shift=images.scaling.shift, scale=images.scaling.scale, t_max=getattr(objective, "t_max", 1.0), sampler=objective.sampler, most_steps=objective.most_steps,
        backbone={
            "width": args.width, "depth": args.depth, "heads": args.width // 64 or 1,
            "time_scale": objective.time_scale,
        },
    )  # fmt: skip
    model = ImageFlow(config).to(device)
    data = images.scaling.to_model(images.train).to(device)

    def batch_of(step: int, rng: Rng) -> StateBatch:
        rows = (rng.uniform("rows", args.batch) * len(data)).long()
        return StateBatch(data[rows])

    average, steps = fit_map(
        model.map,
        objective,
        batch_of,
        args.batch,
        args.seconds,
        4e-4,
        args.seed,
        paced=PACED,
        decay_weights=FIELDS.get(name, {}).get("optimizer__weight_decay", 0.01),
    )
    model.map.load_state_dict(average.state_dict())
    return model.eval(), steps


@torch.no_grad()
def draw(model: ImageFlow, steps: int, args: Any, device: torch.device) -> tuple[np.ndarray, int]:
    parts, nfe = [], 0
    for rows in torch.arange(args.num, device=device).split(1000):
        rng = Rng(args.seed, rows)
        x = model.map.path.draw_noise(rng, "sample", torch.zeros(len(rows), *model.shape, device=device))
        guided = Guided(model.map)
        with torch.autocast(device.type, torch.bfloat16):
            times = uniform_times(steps, model.config.t_max).to(device)
            out = sample(model.config.sampler, guided, x, times, rng)
        parts.append(model.images(out.x))
        nfe = out.nfe
    return np.concatenate(parts), nfe


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2(Σ_a Σ_b)^½), float64 (1706.08500)."""
    root = torch.linalg.eigvals(a.T.cov() @ b.T.cov()).real.clamp_min(0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * root)


if __name__ == "__main__":
    main()
