"""Lagrangian self-distillation (2505.18825): where the jump lands, it must move with the local velocity.

    Δ = v + (s−t)∂_s v − sg v(sg x_s, s, s),   x_s = x_t + (s−t)v,   v = v_θ(x_t, t, s)

since d/ds X_{t→s} = v + (s−t)∂_s v. The gradient runs through the derivative; x is never differentiated.
"""

import torch

from flowmap.objectives.base import derivative
from flowmap.objectives.two_time import Noised, TwoTime


class Lagrangian(TwoTime):
    def residual(self, model, teacher, x: Noised, step):
        v, dv_ds = derivative(model.velocity, (x.x_t, x.t, x.s), (None, 0.0, 1.0), x.context)
        with torch.no_grad():
            landed = model.path.move(x.x_t, v, x.t, x.s)
            local = teacher.velocity(landed, x.s, x.s, x.context)
        return v - x.span() * dv_ds - local
