"""Sums and counts of what slices report, and their means over slices and ranks."""

import torch
from accelerate import Accelerator
from torch import Tensor

from flowmap.objectives.base import Loss


class Metrics:
    """Sums and counts over slices; means at the end."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}
        self.positions = 0.0

    def add(self, loss: Loss) -> None:
        for name, (total, count) in {"loss": (loss.sum.detach(), loss.count), **loss.metrics}.items():
            old = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = (old[0] + total, old[1] + count)

    def reduce(self, accelerator: Accelerator) -> dict[str, float]:
        self.positions = float(self.sums["loss"][1])
        names = sorted(self.sums)
        flat = torch.stack([torch.stack([part.float() for part in self.sums[name]]) for name in names])
        flat = accelerator.reduce(flat, "sum")
        return {name: (total / max(count, 1)).item() for name, (total, count) in zip(names, flat, strict=True)}

    def means(self) -> dict[str, float]:
        return {name: (total / count.clamp_min(1)).item() for name, (total, count) in sorted(self.sums.items())}
