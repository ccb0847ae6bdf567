"""What the two objectives that differentiate a map on logits share: both solve an identity of one shape for p,

    p·(1 + k·δ) = p_local,   p = p_{t→s}(x_t),   p⊙δ = dp along some direction,   δ = dz − ⟨p, dz⟩,   p = softmax(z)

either by division, q = softmax(z_local − log max(1 + kδ, clamp))           form "log"   (2604.09784; math.md §4)
or by subtraction,  q ∝ max(p_local − k·p⊙δ, 0)                            form "linear"

Both are p at the exact map, where 1 + kδ = p_local/p, as long as no token that p holds likely has a ratio below
`clamp`, or below the rounding of 1 + kδ. The linear form has no such condition and is the default: small networks
trained on six poker hands came nearer to the law in one step with it, under either objective.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from flowmap.codebook import in_full
from flowmap.objectives.base import derivative
from flowmap.objectives.tokens.base import TokenObjective
from flowmap.rng import Rng
from flowmap.times import TimeLaw

Form = Literal["log", "linear"]


class Differential(TokenObjective):
    """form, clamp: how the identity is solved. s ≥ t_min too. The rest as in TokenObjective."""

    def __init__(
        self,
        diagonal: float = 0.5,
        times: TimeLaw | None = None,
        form: Form = "linear",
        clamp: float = 1e-2,
        t_min: float = 0.01,
        **more: Any,
    ) -> None:
        super().__init__(diagonal, times, t_min=t_min, **more)
        if form not in ("log", "linear") or not clamp > 0:
            raise ValueError(f"form {form!r} with clamp {clamp}: forms are 'log' and 'linear', the clamp is positive")
        self.form, self.clamp = form, clamp

    def pair(self, rng: Rng, count: int, step: int) -> tuple[Tensor, Tensor]:
        t, s = super().pair(rng, count, step)
        return t, s.clamp_min(self.t_min)

    def solve(self, local: Tensor, z: Tensor, delta: Tensor, k: Tensor) -> Tensor:
        """q, from the logits of p_local and of p."""
        if self.form == "log":
            return (in_full(local) - torch.log((1 + k * delta).clamp_min(self.clamp))).softmax(-1)
        q = (in_full(local).softmax(-1) - k * z.softmax(-1) * delta).clamp_min(0)
        return q / q.sum(-1, keepdim=True)  # at least 1: what was cut off was negative


def logit_derivative(
    model: Any,
    point: tuple[Tensor, Tensor, Tensor],
    direction: tuple[Tensor | None, float, float],
    context: Any = None,
) -> tuple[Tensor, Tensor]:
    """(z, δ) of the logits z(x_t, t, s) along (dx, dt, ds)."""
    z, dz = derivative(lambda *at: in_full(model.logits(*at)), point, direction, context)
    return z, dz - (z.softmax(-1) * dz).sum(-1, keepdim=True)
