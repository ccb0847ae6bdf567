"""Categorical flow maps (2602.12233): the local law at the landing point as target, and a price on what s changes.

    L = KL(sg p_{s→s}(X_{t→s}) ‖ p_{t→s}) + λ·‖γ ∂_s g_{t→s}(x_t)‖²,   γ = (t − s)/t

By the Lagrangian identity g_{t→s} = g_{s→s}(X_{t→s}) + s·γ·∂_s g_{t→s} (math.md §2) the two terms pull on one residual from
both sides: the first would have its last addend vanish, the second keeps it small where it cannot. The exact map is
not a minimum, except in the limit of s → 0 or s → t; the gradient of the price goes through a derivative in forward mode.
"""

from typing import Any

from flowmap.codebook import in_full
from flowmap.objectives.base import derivative
from flowmap.objectives.tokens.base import NoisedTokens, TokenObjective
from flowmap.path import expand
from flowmap.self_conditioning import asked


class CategoricalFlowMap(TokenObjective):
    """price: λ. diagonal: 3/4 in the paper. s ≥ t_min too."""

    def __init__(self, diagonal: float = 0.75, price: float = 1.0, t_min: float = 0.01, **more: Any) -> None:
        super().__init__(diagonal, t_min=t_min, **more)
        self.price = price

    def pair(self, rng, count, step):
        t, s = super().pair(rng, count, step)
        return t, s.clamp_min(self.t_min)

    def target(self, teacher, x: NoisedTokens, step):
        g = teacher.codebook.expected(teacher.logits(x.x_t, x.t, x.s, x.context))
        landed = teacher.path.jump(x.x_t, g, x.t, x.s)
        return in_full(self.local(teacher).logits(landed, x.s, x.s, x.context)).softmax(-1)

    def divergence(self, model, teacher, x: NoisedTokens, step):
        error, weight = super().divergence(model, teacher, x, step)

        def g(*at):
            return model.codebook.expected(asked(model, x.told).logits(*at))

        with model.codebook.held():
            _, dg = derivative(g, (x.x_t.detach(), x.t, x.s), (None, 0.0, 1.0), x.context)
        gamma = expand((x.t - x.s) / x.t, dg)
        return error + self.price * (gamma * dg).square().flatten(1).sum(1), weight
