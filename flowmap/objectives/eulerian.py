"""Eulerian self-distillation (2505.18825): a jump to s does not change when its start flows on by dt.

v(x_t, t, s) → sg[v(x_t,t,t) − (t−s)·(v(x_t,t,t)·∂_x v + ∂_t v)],   derivatives at (x_t, t, s)
"""

import torch

from flowmap.objectives.base import derivative
from flowmap.objectives.two_time import Noised, TwoTime


class Eulerian(TwoTime):
    def residual(self, model, teacher, x: Noised, step):
        with torch.no_grad():
            local = teacher.velocity(x.x_t, x.t, x.t, x.context)
            _, dv_dt = derivative(teacher.velocity, (x.x_t, x.t, x.s), (local, 1.0, 0.0), x.context)
        return x.velocity(model) - (local - x.span() * dv_dt)
