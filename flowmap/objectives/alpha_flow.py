"""AlphaFlow (2510.20771): one family from trajectory matching (α = 1) over shortcuts to MeanFlow (α = 0).

    Δ = α^{−½}·(u(x_t,t,s) − (α·ṽ + (1−α)·sg u(x_u,u,s))),   ṽ = ε−x,  u = t − α(t−s),  x_u = x_t − α(t−s)ṽ

α falls from 1 to 0 by a sigmoid of the step, between `start` and `end`; below `lowest` it is 0, where Δ's gradient (at power 0) goes
over to MeanFlow's. A small α divides a small difference, which is taken in full precision.
"""

import math

import torch

from flowmap.objectives.mean_flow import MeanFlow
from flowmap.objectives.two_time import Noised
from flowmap.times import TimeLaw

FINE = 0.05
"""Below this α, half precision's rounding shows in the difference."""


class AlphaFlow(MeanFlow):
    version = 3

    def __init__(
        self,
        diagonal: float = 0.25,
        times: TimeLaw | None = None,
        power: float = 0.0,
        start: int = 0,
        end: int = 3000,
        lowest: float = 0.005,
        spans: TimeLaw | None = None,
    ) -> None:
        super().__init__(diagonal, times, power, spans)
        if not 0 < lowest <= 1:
            raise ValueError(f"lowest {lowest}: the α below which there is none, above 0 and at most 1")
        self.start, self.end, self.lowest = start, end, lowest

    def alpha(self, step: int) -> float:
        place = 12 * ((step - self.start) / max(1, self.end - self.start) - 0.5)
        alpha = 1 / (1 + math.exp(min(place, 60.0)))
        return alpha if alpha >= self.lowest else 0.0

    def residual(self, model, teacher, x: Noised, step):
        alpha = self.alpha(step)
        if alpha == 0:
            return super().residual(model, teacher, x, step)
        u = x.t - alpha * (x.t - x.s)
        kind = x.x_t.device.type
        with torch.autocast(kind, enabled=torch.is_autocast_enabled(kind) and alpha >= FINE):
            with torch.no_grad():
                ahead = teacher.velocity(x.x_t - alpha * x.span() * x.dx, u, x.s, x.context)
            return (x.velocity(model) - (alpha * x.dx + (1 - alpha) * ahead)) * alpha**-0.5
