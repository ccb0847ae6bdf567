"""Objectives of continuous states on tokens' codes, beside the cross-entropy that gives the codes their meaning.

    L = E Σ_l −log p(x^l | x_t, t, t) + weight·L_states(X; c_x)

L_states is any loss that asks a map for jumps and velocities (inductive moment matching, the energy score): it sees the
codes as data that does not move, and reaches the logits through g = Cᵀp. What is known is no part of its states.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowmap.objectives.base import Loss, Objective, StateBatch
from flowmap.objectives.energy import EnergyScore
from flowmap.objectives.imm import InductiveMomentMatching
from flowmap.objectives.tokens.base import TokenStates
from flowmap.objectives.tokens.diagonal import CrossEntropy
from flowmap.rng import Rng
from flowmap.times import TimeLaw


@dataclass(frozen=True)
class Open:
    """A map whose jumps end at zero where at, (B, N, 1) bool, is False: what is known there has no law to be matched."""

    model: Any
    at: Tensor | None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def jump(self, x_t: Tensor, t: Tensor, s: Tensor, context: Any) -> Tensor:
        landed = self.model.jump(x_t, t, s, context)
        return landed if self.at is None else landed * self.at


class OnStates(Objective):
    """few: the loss on states, a mean over elements. weight: of it, times the number of tokens of a sample."""

    def __init__(self, few: Objective, times: TimeLaw | None, weight: float, self_conditioning: float) -> None:
        super().__init__()
        self.few, self.weight = few, weight
        self.diagonal = CrossEntropy(times, self_conditioning=self_conditioning)
        self.t_min, self.self_conditioning = self.diagonal.t_min, self_conditioning
        self.coupling, self.group_size = few.coupling, few.group_size  # type: ignore[misc]

    def forward(self, model, batch: TokenStates, *, teacher=None, rng: Rng, step: int) -> Loss:
        loss = self.diagonal(model, batch, teacher=teacher, rng=rng, step=step)
        with model.codebook.held():
            open_ = None if batch.scored is None else batch.scored[..., None]
            codes = model.codebook.encode(batch.tokens)
            states = StateBatch(codes if open_ is None else codes * open_, batch.context)
            few = self.few(Open(model, open_), states, teacher=teacher, rng=rng, step=step)
        count = torch.tensor(float(batch.size), device=few.sum.device)
        metrics = {"cross_entropy": loss.metrics["cross_entropy"], "few_step": (few.sum.detach(), count), **few.metrics}
        return Loss(loss.sum + self.weight * batch.tokens.shape[1] * few.sum, loss.count, metrics, loss.statistics)

    def learn(self, statistics: dict[str, Tensor]) -> None:
        self.diagonal.learn(statistics)


class MomentMatchingOnStates(OnStates):
    """group_size, k, kernel, weighted: of inductive moment matching."""

    version = InductiveMomentMatching.version

    def __init__(
        self, times: TimeLaw | None = None, weight: float = 1.0, self_conditioning: float = 0.0,
        group_size: int = 16, k: int = 8, kernel: str = "laplace", weighted: bool = False, t_min: float = 0.01,
    ) -> None:  # fmt: skip
        few = InductiveMomentMatching(group_size, k, kernel, weighted=weighted, t_min=t_min)
        super().__init__(few, times, weight, self_conditioning)


class EnergyOnStates(OnStates):
    """beta: of the energy score."""

    def __init__(
        self,
        times: TimeLaw | None = None,
        weight: float = 1.0,
        self_conditioning: float = 0.0,
        beta: float = 1.0,
    ) -> None:
        super().__init__(EnergyScore(beta), times, weight, self_conditioning)
