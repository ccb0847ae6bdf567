"""Training of a two-time map for a given time, whatever its objective: averaged weights, an averaged teacher where one is asked for."""

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from flowmap.objectives import Objective
from flowmap.rng import Rng
from training.projection import Projection

LOOK_EVERY = 20
"""Steps between two looks at the clock's truth: work done, not work asked for."""


def fit_map(
    model: nn.Module,
    objective: Objective,
    batch_of: Callable[[int, Rng], Any],
    size: int,
    seconds: float,
    rate: float,
    seed: int = 0,
    steps: int | None = None,
    decay: float = 0.999,
    warmup: int = 0,
    project: bool = False,
    begin: Callable[[float], object] | None = None,
    full_precision: bool = False,
    paced: int | None = None,
    decay_weights: float = 0.01,
) -> tuple[nn.Module, int]:
    """model: the map, on its device. batch_of(step, rng): `size` samples there. steps: at most. warmup: steps, then a cosine over
    the time; 0: a constant rate. begin: before each step, with the share of the time that is over. paced: the number of steps that the
    objective is to think there are, so that what is scheduled ends with the time; None: it is told them as they are. decay_weights: AdamW's. → averaged weights, steps."""
    device = next(model.parameters()).device
    objective.to(device)
    model.train()
    average = copy.deepcopy(model).requires_grad_(False)
    teacher = copy.deepcopy(model).requires_grad_(False) if objective.teacher_decay else None
    weights = [p for p in (*model.parameters(), *objective.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.95), weight_decay=decay_weights, fused=True)
    projection = Projection(weights) if project else None
    samples, spread = torch.arange(size, device=device), size if objective.low_discrepancy else None
    start, step, done = time.monotonic(), 0, 0.0
    while done < 1:
        if warmup:
            scale = min(1.0, (step + 1) / warmup) * (1 + torch.cos(torch.tensor(torch.pi * done)).item()) / 2
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
        if begin is not None:
            begin(done)
        rng = Rng(seed, samples, step, spread)
        with torch.autocast(device.type, torch.bfloat16, enabled=not full_precision):
            told = step if paced is None else int(done * paced)
            loss = objective(model, batch_of(step, rng), teacher=teacher, rng=rng, step=told)
        if projection is None:
            loss.sum.backward()
        else:
            projection.add(loss)
            projection.settle(lambda part: part)
        for p in weights:
            if p.grad is not None:
                p.grad /= loss.count.clamp_min(1)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if loss.statistics:
            objective.learn(loss.statistics)
        step += 1
        _follow(average, model, min(decay, (1 + step) / (10 + step)))
        if teacher is not None:
            _follow(teacher, model, min(objective.teacher_decay or 0.0, (1 + step) / (10 + step)))
        if step % LOOK_EVERY == 0 and device.type == "cuda":
            torch.cuda.synchronize()
        done = max((time.monotonic() - start) / seconds, step / steps if steps else 0.0)
    return average.eval(), step


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
