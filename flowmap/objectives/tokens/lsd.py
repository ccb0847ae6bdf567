"""Lagrangian self-distillation on logits (2604.09784): where the jump lands, it must move with the local velocity.

    p·(1 − s(t−s)/t·δ) = p_{s→s}(X_{t→s}),   p = p_{t→s}(x_t),   p⊙δ = ∂p/∂s

Form "log" is not usable near the data: for small s the landing point knows its tokens, p_{s→s} is one-hot and the ratio
p_{s→s}/p of tokens that p, a mean over the way, still holds likely is e^{−O(1/s²)}, below any clamp and any rounding.
"""

from flowmap.objectives.tokens.base import NoisedTokens
from flowmap.objectives.tokens.differential import Differential, logit_derivative
from flowmap.path import expand


class LagrangianKL(Differential):
    def target(self, teacher, x: NoisedTokens, step):
        z, delta = logit_derivative(teacher, (x.x_t, x.t, x.s), (None, 0.0, 1.0), x.context)
        landed = teacher.path.jump(x.x_t, teacher.codebook.expected(z), x.t, x.s)
        local = self.local(teacher).logits(landed, x.s, x.s, x.context)
        return self.solve(local, z, delta, expand(x.s * (x.s - x.t) / x.t, z))
