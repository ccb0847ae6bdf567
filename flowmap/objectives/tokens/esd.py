"""Eulerian self-distillation on logits (2604.09784): a jump to s does not change when its start flows on by dt.

    p·(1 + t(t−s)/s·δ) = p_{t→t},   p = p_{t→s}(x_t),   p⊙δ = dp/dt along dx/dt = v_{t→t}

At s = 0 this says δ = 0 and nothing about p, hence s ≥ t_min. Form "log" is exact with a clamp of 1/V or less: the ratio
p_{t→t}/p falls that far at t = 1.
"""

from flowmap.objectives.tokens.base import NoisedTokens
from flowmap.objectives.tokens.differential import Differential, logit_derivative
from flowmap.path import expand


class EulerianKL(Differential):
    def target(self, teacher, x: NoisedTokens, step):
        local = self.local(teacher).logits(x.x_t, x.t, x.t, x.context)
        v = teacher.path.secant(x.x_t, teacher.codebook.expected(local), x.t)
        z, delta = logit_derivative(teacher, (x.x_t, x.t, x.s), (v, 1.0, 0.0), x.context)
        return self.solve(local, z, delta, expand(x.t * (x.t - x.s) / x.s, z))
