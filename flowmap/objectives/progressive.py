"""Progressive self-distillation (2505.18825): one jump equals two.

    v(x_t,t,s) → sg[(1−γ)·v(x_t,t,u) + γ·v(x_u,u,s)],   u = t − (1−γ)(t−s),  x_u = x_t + (u−t)·v(x_t,t,u)

γ ~ U(0, 1), or fixed. No derivative is taken, so it works on token states too.
"""

import torch

from flowmap.objectives.two_time import Noised, TwoTime
from flowmap.path import expand


class Progressive(TwoTime):
    def __init__(self, *args, gamma: float | None = None, **more) -> None:
        super().__init__(*args, **more)
        self.gamma = gamma

    def residual(self, model, teacher, x: Noised, step):
        gamma = torch.full_like(x.t, self.gamma) if self.gamma is not None else x.u
        u = x.t - (1 - gamma) * (x.t - x.s)
        with torch.no_grad():
            first = teacher.velocity(x.x_t, x.t, u, x.context)
            x_u = model.path.move(x.x_t, first, x.t, u)
            second = teacher.velocity(x_u, u, x.s, x.context)
        g = expand(gamma, x.x_t)
        return x.velocity(model) - ((1 - g) * first + g * second)
