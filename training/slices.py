"""A step's global batch in slices, and the loss of one: what a rank's micro-batch is."""

import contextlib
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from flowmap.attention import ShortAttention
from flowmap.objectives.base import Loss, Objective
from flowmap.rng import Rng
from training.config import TrainingConfig
from training.task import Task


class SliceLoss(nn.Module):
    """Model and objective behind one forward, which is what DDP wraps. teacher: moving average of the model's weights,
    no part of what is trained or averaged."""

    def __init__(self, model: nn.Module, objective: Objective, precision: str) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        self.dtype = torch.bfloat16 if precision == "bfloat16" else None
        self._teacher: tuple[nn.Module, ...] = ()  # in a tuple, so that it is no submodule

    def teach(self, teacher: nn.Module) -> None:
        self._teacher = (teacher,)

    def forward(self, batch: Any, rng: Rng, step: int) -> Loss:
        fast = self.training and self.dtype is not None  # what is reported is scored in fp32
        kind = rng.device.type
        attention = ShortAttention() if fast and kind == "cpu" else contextlib.nullcontext()
        with torch.autocast(kind, self.dtype, enabled=fast), attention:
            return self.objective(self.model, batch, teacher=next(iter(self._teacher), None), rng=rng, step=step)


def slices_of(
    task: Task, accelerator: Accelerator, plan: TrainingConfig, step: int, device: torch.device
) -> list[tuple[Any, Rng]]:
    """This rank's micro-batches: consecutive slices of the global batch, each with its own randomness."""
    size = plan.batch_size // (accelerator.num_processes * plan.accumulation)
    spread = plan.batch_size if task.objective.low_discrepancy else None
    result = []
    for m in range(plan.accumulation):
        low = (accelerator.process_index * plan.accumulation + m) * size
        samples = torch.arange(low, low + size)
        rng = Rng(task.train_seed, samples.to(device), step, spread)
        result.append((task.train.batch(step, samples).to(device), rng))
    return result
