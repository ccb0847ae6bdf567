"""What clocks share: cross-entropy by bins of a coordinate z(t) ∈ [0, 1], remembered for a while.

    told ← decay·told + sums of the last optimizer step,      CE_b = Σ nats / Σ tokens of bin b

The sums are over the whole global batch, added over slices and ranks by the training loop, so that a clock is the same
on every rank and under any accumulation; what it knows is its buffers. Nothing of it has a gradient.
"""

import torch
from torch import Tensor

from flowmap.times import TimeLaw

NAME = "clock"


class Clock(TimeLaw):
    """decay: of what was heard, a step: 0.995 remembers 200 steps."""

    listens = True
    told: Tensor

    def __init__(self, bins: int = 100, decay: float = 0.995) -> None:
        super().__init__()
        if bins < 2 or not 0 <= decay < 1:
            raise ValueError(f"{bins} bins that keep {decay}: at least 2 bins and a decay in [0, 1) are needed")
        self.bins, self.decay = bins, decay
        self.register_buffer("told", torch.zeros(3, bins, dtype=torch.float64))

    def coordinate(self, t: Tensor) -> Tensor:
        """z(t), in float64."""
        raise NotImplementedError

    def refit(self) -> None:
        """The law, from what was told."""
        raise NotImplementedError

    def statistics(self, t: Tensor, nats: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        z = self.coordinate(t.detach().double()).clamp(0, 1)
        weight = tokens.to(z)
        told = torch.stack([nats.detach().to(z), weight, weight * z])
        place = (z * self.bins).long().clamp_max(self.bins - 1)
        return {NAME: torch.zeros_like(self.told).index_add_(1, place, told)}

    def learn(self, statistics: dict[str, Tensor]) -> None:
        self.told.mul_(self.decay).add_(statistics[NAME])
        self.refit()
