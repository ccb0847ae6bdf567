"""Where on [0, 1] a loss looks: laws of single times and of pairs s ≤ t, drawn from addressed uniforms."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flowmap.rng import Rng


@dataclass(frozen=True)
class Uniform:
    """U(low, high)."""

    low: float = 0.0
    high: float = 1.0

    def draw(self, rng: Rng, name: str, count: int) -> Tensor:
        return self.low + (self.high - self.low) * rng.uniform(name, count)


@dataclass(frozen=True)
class LogitNormal:
    """sigmoid(N(mean, deviation²)): most of the weight away from both ends (2403.03206)."""

    mean: float = -0.4
    deviation: float = 1.0

    def draw(self, rng: Rng, name: str, count: int) -> Tensor:
        return torch.sigmoid(self.mean + self.deviation * rng.normal(name, count))


class TimeLaw(Protocol):
    def draw(self, rng: Rng, name: str, count: int) -> Tensor:
        """(count,) times."""


def ordered_pair(law: TimeLaw, rng: Rng, count: int) -> tuple[Tensor, Tensor]:
    """Two independent times, the later (noisier) first: (t, s)."""
    one, other = law.draw(rng, "t", count), law.draw(rng, "s", count)
    return torch.maximum(one, other), torch.minimum(one, other)
