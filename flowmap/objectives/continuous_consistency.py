"""Continuous-time consistency, sCM (2410.11081), on the linear path.

With f = X_{t→0} = x_t − t·v(x_t,t,0), the exact map has df/dt = 0 along its trajectory. The tangent

    T = (dx/dt − v) − r·t·dv/dt,   dx/dt = ε − x,   g = T/(‖T‖ + c),   Δ = v − sg(v + g)

has the gradient of ⟨f, df/dt⟩; r warms up from 0 to 1, c = 0.1 normalises (None: T itself, which is
what vanishes at the oracle). ‖T‖ is a root mean square over elements.
"""

import torch

from flowmap.objectives.base import derivative, mean_square
from flowmap.objectives.two_time import Noised, TwoTime
from flowmap.path import expand
from flowmap.times import LogitNormal, TimeLaw


class ContinuousConsistency(TwoTime):
    bound = True
    sampler = "restart"  # it only ever jumps to 0

    def __init__(self, times: TimeLaw | None = None, warmup: int = 1000, normalise: float | None = 0.1) -> None:
        super().__init__(0.0, times or LogitNormal())
        self.warmup, self.normalise = warmup, normalise

    def pair(self, rng, count, step):
        t = self.times.draw(rng, "t", count)
        return t, torch.zeros_like(t)

    def residual(self, model, teacher, x: Noised, step):
        r = min(1.0, (step + 1) / max(1, self.warmup))
        v = x.velocity(model)
        with torch.no_grad():
            _, dv_dt = derivative(model.velocity, (x.x_t, x.t, x.s), (x.dx, 1.0, 0.0), x.context)
            tangent = x.dx - v - r * x.span() * dv_dt
            if self.normalise is not None:
                tangent = tangent / (expand(mean_square(tangent).sqrt().to(tangent), tangent) + self.normalise)
        return v - (v + tangent).detach()
