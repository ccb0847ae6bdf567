"""Fifteen objectives on two densities in the plane known in closed form: what one step reaches, and what 64 do.

    python -m benchmarks.toys [--laws ...] [--objectives ...] [--seeds 0 1 2] [--json FILE] [--plot FILE]

All train the same network with the same optimiser for equal compute: the processor time of --steps steps of flow
matching, by the measured price of a step of each (RECIPES). Flow matching by 64 Euler steps is the reference, by one
step the counterexample. Two-time maps are sampled by pushforward, consistency models by restart, one-step generators
in one step.

    histogram_kl   KL(law ‖ samples), nats, 64 × 64 cells over [−1.6, 1.6]², the law's cells exact, the samples'
                   mixed with 0.1% of the uniform law; n = 50,000
    coverage       share of the squares or modes that hold at least half of their mass
    validity       share of the samples on the support (a square; within three deviations of a mode); the table shows
                   what is off it
    w2             exact 2-Wasserstein distance of 2,000 samples to 2,000 of the law (POT), a field of histogram_kl

`law` stands for samples of the law itself: what any of these numbers would be for a perfect model.
"""

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cells import cell
from eval.records import read_records, record, seeds_mean, write_records
from flowmap.maps import FlowMap
from flowmap.objectives import OBJECTIVES, Objective, StateBatch
from flowmap.rng import Rng
from flowmap.samplers import Guided, euler, pushforward, restart, uniform_times
from imm.toys import LAWS, PointNetwork, coverage, histogram_kl, off_support

RESULTS = Path(__file__).parent / "results" / "toys"
POINTS = Path("runs/toys")  # samples of cells measured here, for the picture; not committed
SAMPLES, TRANSPORTED, REFERENCE = 50_000, 2000, 64
NOISE, DATA = 2**32 - 1, 2**32 - 2
"""Numbers of batches that no training reaches: what is sampled from, and what W₂ is taken to."""
EXACT = "law"


@dataclass(frozen=True)
class Recipe:
    """price: time of a step over that of flow matching (batch 1024, one core of an AMD EPYC). options: from the number
    of steps, for what is scheduled. sampler, counts: of the evaluation."""

    price: float
    options: Callable[[int], dict[str, Any]] = lambda steps: {}
    time_scale: float = 2.0
    sampler: str = "pushforward"
    counts: tuple[int, ...] = (1, 2, 4, 8)


RECIPES = {
    "flow-matching": Recipe(1.0, sampler="euler", counts=(1, 2, 4, 8, REFERENCE)),
    "lagrangian": Recipe(2.4, lambda steps: {"diagonal": 0.5}),
    "terminal-velocity": Recipe(2.5, lambda steps: {"diagonal": 0.5}),
    "progressive": Recipe(1.2),
    "shortcut": Recipe(1.2),
    "eulerian": Recipe(1.9),
    "mean-flow": Recipe(2.0, lambda steps: {"power": 0.0}),
    "improved-mean-flow": Recipe(2.1, lambda steps: {"power": 0.0}),
    "alpha-flow": Recipe(1.3, lambda steps: {"end": steps * 3 // 4}),
    "trajectory": Recipe(1.5),
    "imm": Recipe(
        2.6, lambda steps: {"group_size": 128, "k": 2, "kernel": "laplace", "weighted": False}, time_scale=10.0
    ),
    "consistency": Recipe(1.2, lambda steps: {"stage": steps // 8}, sampler="restart"),
    "continuous-consistency": Recipe(2.2, lambda steps: {"warmup": steps // 4}, sampler="restart"),
    "energy": Recipe(1.7, counts=(1,)),
    "drifting": Recipe(4.1, lambda steps: {"group_size": 256}, counts=(1,)),
}


class Drawn(Rng):
    """Rng's numbers from torch's own generator, still a function of (seed, batch, name): one process draws each batch
    whole, and Philox in torch's arithmetic would take as long as a network of this size."""

    def _bits(self, name: str, shape: tuple[int, ...]) -> Tensor:
        words = np.random.SeedSequence((self.seed, self.batch, *name.encode())).generate_state(2)
        generator = torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
        return torch.randint(2**32, shape, generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", nargs="+", default=list(LAWS), choices=LAWS)
    parser.add_argument("--objectives", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1400, help="of flow matching; the others get the same time")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--kept", action="store_true", help="show the cells that are there; train nothing")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="draw one-step samples of the first seed there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    command = ["python", "-m", "benchmarks.toys", *sys.argv[1:]]
    records = []
    for law in args.laws:
        for seed in args.seeds:
            for name in (EXACT, *args.objectives):
                records += one_cell(law, name, seed, args, command)
    print(table(records, args))
    if args.json:
        write_records(args.json, command, records)
    if args.plot:
        plot(args)


def one_cell(law: str, name: str, seed: int, args: argparse.Namespace, command: list[str]) -> list[dict[str, Any]]:
    file = args.results / f"{law}-{name}-{seed}.json"
    if args.kept:
        return read_records(file) if file.exists() else []
    inputs: dict[str, Any] = {"law": law, "objective": name, "seed": seed, "samples": SAMPLES}
    if name != EXACT:
        recipe = RECIPES[name]
        steps = round(args.steps / recipe.price)
        inputs |= {"steps": steps, "batch": args.batch, "options": recipe.options(steps), **OPTIMISER, **NETWORK}
        inputs |= {"time_scale": recipe.time_scale, "sampler": recipe.sampler, "counts": list(recipe.counts)}

    def measure() -> list[dict[str, Any]]:
        start = time.process_time()
        if name == EXACT:
            x = LAWS[law].sample(SAMPLES, Drawn(seed, batch=NOISE))
            return _records(law, name, seed, x, {"sampler": EXACT, "dtype": "float32"})
        model = train(law, name, seed, steps, args.batch)
        contract: dict[str, Any] = {
            "sampler": recipe.sampler, "dtype": "float32", "ema": None, "batch": args.batch, "train_steps": steps,
            "options": inputs["options"], "train_processor_seconds": round(time.process_time() - start, 1),
        }  # fmt: skip
        found = []
        for count in recipe.counts:
            x, nfe = draw(model, recipe.sampler, count, seed)
            if count in (1, REFERENCE):
                keep_points(x, law, name, count, seed)
            found += _records(law, name, seed, x, {**contract, "steps": count, "nfe": nfe})
        print(f"{law} {name} {seed}: one step {found[0]['value']:.3f}", flush=True)
        return found

    return cell(file, inputs, command, measure)


NETWORK: dict[str, Any] = {"width": 128, "depth": 3, "waves": 8}
OPTIMISER: dict[str, Any] = {"adam": 0.01, "muon": 0.1, "warmup": 50, "decay": "cosine"}
"""Muon for the square matrices, Adam (β₂ 0.99) for the rest; tuned for flow matching and the Lagrangian on seed 0."""


def train(law: str, name: str, seed: int, steps: int, batch: int) -> FlowMap:
    recipe = RECIPES[name]
    torch.manual_seed(seed)
    model = FlowMap(PointNetwork(time_scale=recipe.time_scale, **NETWORK))
    objective: Objective = OBJECTIVES[name](**recipe.options(steps))
    teacher = copy.deepcopy(model).requires_grad_(False) if objective.teacher_decay else None
    matrices = [layer.weight for layer in model.network.layers]  # type: ignore[union-attr]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)] + list(objective.parameters())
    optimisers = [
        torch.optim.Adam(others, OPTIMISER["adam"], betas=(0.9, 0.99), fused=True),
        torch.optim.Muon(matrices, OPTIMISER["muon"], weight_decay=0.0),
    ]
    schedule = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: rate(step, steps)) for o in optimisers]
    rows = torch.arange(batch)
    for step in range(steps):
        rng = Drawn(seed, rows, step)
        loss = objective(model, StateBatch(LAWS[law].sample(batch, rng)), teacher=teacher, rng=rng, step=step)
        (loss.sum / loss.count).backward()
        for optimiser, rates in zip(optimisers, schedule, strict=True):
            optimiser.step()
            optimiser.zero_grad()
            rates.step()
        if teacher is not None and objective.teacher_decay is not None:
            decay = min(objective.teacher_decay, (step + 1) / (step + 10))
            for averaged, current in zip(teacher.parameters(), model.parameters(), strict=True):
                averaged.lerp_(current.detach(), 1 - decay)
    return model.eval()


def rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / OPTIMISER["warmup"]) * (1 + math.cos(math.pi * step / steps)) / 2


def draw(model: FlowMap, sampler: str, count: int, seed: int, num_samples: int = SAMPLES) -> tuple[Tensor, int]:
    """(samples, network calls a sample), from the same noise for every objective."""
    rng = Drawn(seed, batch=NOISE)
    x = model.path.noise_scale * rng.normal("x_1", num_samples, 2)
    guided, times = Guided(model), uniform_times(count)
    if sampler == "restart":
        out = restart(guided, x, times, rng)
    else:
        out = {"pushforward": pushforward, "euler": euler}[sampler](guided, x, times)
    return out.x, out.nfe


def _records(law: str, name: str, seed: int, x: Tensor, contract: dict[str, Any]) -> list[dict[str, Any]]:
    here: dict[str, Any] = {"on": law, "subject": name, "kind": "estimate", "n": len(x)}
    here |= {"train_seed": seed, "sample_seed": seed, "contract": contract}
    truth = LAWS[law]
    data = truth.sample(TRANSPORTED, Drawn(seed, batch=DATA))
    w2: dict[str, Any] = {"w2": transport(x[:TRANSPORTED], data), "w2_n": TRANSPORTED}
    return [
        record("histogram_kl", histogram_kl(truth.cells(), x), unit="nats", **here, **w2),
        record("coverage", coverage(truth, x), unit="fraction", **here),
        record("validity", 1 - off_support(truth, x), unit="fraction", **here),
    ]


def transport(x: Tensor, y: Tensor) -> float:
    """Exact W₂ of two equally weighted sets of points."""
    import ot

    cost = torch.cdist(x.double(), y.double()).square().numpy()
    return float(ot.emd2([], [], cost, numItermax=10**7)) ** 0.5


Key = tuple[str, str, int | None]
"""(law, subject, steps of the sampler; None for the law's own samples)."""


def table(records: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """Markdown, a table a law; mean over the seeds ± its standard error, and × the reference's mean."""
    rows: dict[Key, dict[str, list[dict[str, Any]]]] = {}
    for r in records:
        place = rows.setdefault((r["on"], r["subject"], r["contract"].get("steps")), {})
        place.setdefault(r["metric"], []).append(r)
        if "w2" in r:
            place.setdefault("w2", []).append({"value": r["w2"]})
    lines = []
    for law in args.laws:
        reference = rows.get((law, "flow-matching", REFERENCE), {}).get("histogram_kl")
        mark = seeds_mean(reference)["value"] if reference else math.nan
        lines += [
            f"\n{law}, the time of {args.steps} steps of flow matching\n",
            "| objective | seeds | steps | KL, nats | of the reference | coverage | off support | W₂ |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for (on, name, count), found in rows.items():
            if on == law:
                kl, seeds = seeds_mean(found["histogram_kl"])["value"], len(found["histogram_kl"])
                texts = [show(found[metric]) for metric in ("histogram_kl", "coverage", "validity", "w2")]
                texts[2] = show(found["validity"], complement=True)
                lines.append(
                    f"| {name} | {seeds} | {count or ''} | {texts[0]} | {kl / mark:.2f} | {' | '.join(texts[1:])} |"
                )
    return "\n".join(lines)


def show(records: list[dict[str, Any]], complement: bool = False) -> str:
    mean = seeds_mean(records)
    value = 1 - mean["value"] if complement else mean["value"]
    return f"{value:.3f} ± {mean['stderr']:.3f}" if "stderr" in mean else f"{value:.3f}"


def keep_points(x: Tensor, law: str, name: str, count: int, seed: int) -> None:
    POINTS.mkdir(parents=True, exist_ok=True)
    np.save(POINTS / f"{law}-{name}-{seed}-{count}.npy", x[:TRANSPORTED].numpy())


def plot(args: argparse.Namespace) -> None:
    """Samples of the first seed: the law, the reference, then every objective in one step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    seed, panels = args.seeds[0], [(EXACT, 0), ("flow-matching", REFERENCE), *((name, 1) for name in args.objectives)]
    columns = -(-len(panels) // 2)
    figure, axes = pyplot.subplots(2 * len(args.laws), columns, figsize=(1.1 * columns, 2.6 * len(args.laws)))
    for ax in axes.flat:
        ax.axis("off")
    for i, law in enumerate(args.laws):
        for j, (name, count) in enumerate(panels):
            file = POINTS / f"{law}-{name}-{seed}-{count}.npy"
            if name == EXACT:
                x = LAWS[law].sample(TRANSPORTED, Drawn(seed, batch=DATA)).numpy()
            elif file.exists():
                x = np.load(file)
            else:
                print(f"not in the picture, since its cell was measured elsewhere: {law} {name}")
                continue
            ax = axes[2 * i + j // columns, j % columns]
            ax.plot(*x.T, ",", color="k", alpha=1, antialiased=False)
            title = name if count == 0 else f"{name}, {count} step{'s' * (count > 1)}"
            ax.set_title(title.replace("-", " ").replace(", ", "\n"), fontsize=5)
            ax.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.94, 0.05, 0.2)
    args.plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.plot, dpi=100)
    print(args.plot)


if __name__ == "__main__":
    main()
