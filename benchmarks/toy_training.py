"""How each objective trains the network of the plane, how it is drawn from, and what a step of it costs."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.costs import BESIDE, in_turns, keep_costs
from flowmap.maps import FlowMap
from flowmap.objectives import OBJECTIVES, Objective, StateBatch
from flowmap.rng import Rng
from flowmap.samplers import Guided, sample, uniform_times
from imm.toys import LAWS, PointNetwork

SAMPLES, REFERENCE = 50_000, 64
NOISE = 2**32 - 1
"""The number of a batch that no training reaches: what is sampled from."""
COSTS = Path(__file__).parent / "results" / "toys" / "costs.json"
MANY = 10**6
"""Steps that a training is taken to have whose steps are timed."""


@dataclass(frozen=True)
class Recipe:
    """options: from the number of steps, for what is scheduled. batch: points a step."""

    options: Callable[[int], dict[str, Any]] = lambda steps: {}
    time_scale: float = 2.0
    batch: int = 1024


RECIPES = {
    "flow-matching": Recipe(),
    "lagrangian": Recipe(lambda steps: {"diagonal": 0.5}),
    "terminal-velocity": Recipe(lambda steps: {"diagonal": 0.5}),
    "progressive": Recipe(),
    "shortcut": Recipe(),
    "eulerian": Recipe(),
    "mean-flow": Recipe(lambda steps: {"power": 0.0}),
    "improved-mean-flow": Recipe(lambda steps: {"power": 0.0}),
    "alpha-flow": Recipe(lambda steps: {"end": steps}),
    "trajectory": Recipe(),
    "imm": Recipe(lambda steps: {"group_size": 128, "k": 2, "kernel": "laplace", "weighted": False}, 10.0),
    "consistency": Recipe(lambda steps: {"stage": steps // 8}),
    "consistency-map": Recipe(lambda steps: {"stage": steps // 8}),
    "continuous-consistency": Recipe(lambda steps: {"warmup": steps // 4}),
    "energy": Recipe(),
    "drifting": Recipe(lambda steps: {"group_size": 256, "temperatures": (0.03, 0.1)}, batch=512),
}


def counts_of(name: str) -> tuple[int, ...]:
    """Numbers of steps at which an objective's map is drawn from."""
    most = OBJECTIVES[name].most_steps
    counts = tuple(count for count in (1, 2, 4, 8) if most is None or count <= most)
    return (*counts, REFERENCE) if name == "flow-matching" else counts


class Drawn(Rng):
    """Rng's numbers from torch's own generator, still a function of (seed, batch, name): one process draws each batch
    whole, and Philox in torch's arithmetic would take as long as a network of this size."""

    def _bits(self, name: str, shape: tuple[int, ...]) -> Tensor:
        words = np.random.SeedSequence((self.seed, self.batch, *name.encode())).generate_state(2)
        generator = torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
        return torch.randint(2**32, shape, generator=generator)


NETWORK: dict[str, Any] = {"width": 128, "depth": 3, "waves": 8}
OPTIMISER: dict[str, Any] = {"adam": 0.01, "muon": 0.1, "warmup": 50, "decay": "cosine"}
"""Muon for the square matrices, Adam (β₂ 0.99) for the rest; tuned for flow matching and the Lagrangian on seed 0."""


def train(law: str, name: str, seed: int, steps: int) -> FlowMap:
    *_, model = training(law, name, seed, steps)
    return model.eval()


def training(law: str, name: str, seed: int, steps: int) -> Iterator[FlowMap]:
    """The model after each step."""
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
    rows = torch.arange(recipe.batch)
    for step in range(steps):
        rng = Drawn(seed, rows, step)
        loss = objective(model, StateBatch(LAWS[law].sample(recipe.batch, rng)), teacher=teacher, rng=rng, step=step)
        (loss.sum / loss.count).backward()
        for optimiser, rates in zip(optimisers, schedule, strict=True):
            optimiser.step()
            optimiser.zero_grad()
            rates.step()
        if teacher is not None and objective.teacher_decay is not None:
            decay = min(objective.teacher_decay, (step + 1) / (step + 10))
            for averaged, current in zip(teacher.parameters(), model.parameters(), strict=True):
                averaged.lerp_(current.detach(), 1 - decay)
        yield model


def rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / OPTIMISER["warmup"]) * (1 + math.cos(math.pi * step / steps)) / 2


def draw(model: FlowMap, sampler: str, count: int, seed: int, num_samples: int = SAMPLES) -> tuple[Tensor, int]:
    """(samples, network calls a sample), from the same noise for every objective."""
    rng = Drawn(seed, batch=NOISE)
    x = model.path.noise_scale * rng.normal("x_1", num_samples, 2)
    out = sample(sampler, Guided(model), x, uniform_times(count), rng)
    return out.x, out.nfe


def measure_costs(law: str, names: Sequence[str], command: list[str]) -> None:
    """CPU time of a step of each objective, all taking turns; of some alone, added to those that are there in the same unit."""
    running = {name: training(law, name, 0, MANY) for name in {BESIDE: 0, **dict.fromkeys(names)}}
    steps = {name: lambda one=one: next(one) for name, one in running.items()}
    seconds = in_turns(steps, "toys", rounds=40)
    keep_costs(seconds, law, COSTS, command, later=set(names) != set(RECIPES))
