"""MeanFlow (2505.13447): v is the average velocity between s and t.

u(x_t,t,s) → sg[(ε−x) − (t−s)·((ε−x)·∂_x u + ∂_t u)],   weight sg(‖Δ‖²+1e-3)^{−p}
"""

import torch

from flowmap.objectives.base import derivative
from flowmap.objectives.two_time import Noised, TwoTime
from flowmap.times import LogitNormal, TimeLaw


class MeanFlow(TwoTime):
    def __init__(
        self, diagonal: float = 0.5, times: TimeLaw | None = None, power: float = 0.75, spans: TimeLaw | None = None
    ) -> None:
        super().__init__(diagonal, times or LogitNormal(), power, spans=spans)

    def residual(self, model, teacher, x: Noised, step):
        with torch.no_grad():
            _, du_dt = derivative(teacher.velocity, (x.x_t, x.t, x.s), (x.dx, 1.0, 0.0), x.context)
        return x.velocity(model) - (x.dx - x.span() * du_dt)
