"""Shortcut models (2410.12557): a jump of 2h equals two of h; h is dyadic.

    v(x_t,t,t−2h) → sg ½[v(x_t,t,t−h) + v(x_{t−h},t−h,t−2h)],   x_{t−h} = x_t − h·v(x_t,t,t−h)

The target is the averaged network's, clipped; at the smallest h it takes local velocities, v(x,t,t).
"""

import torch

from flowmap.objectives.two_time import Noised, TwoTime
from flowmap.path import expand
from flowmap.samplers import SMALLEST
from flowmap.times import TimeLaw

HALVINGS = 7
"""From a span of 1 to SMALLEST, 2^−7."""


class Shortcut(TwoTime):
    teacher_decay = 0.999
    sampler = "shortcut"
    time_scale = 1000.0

    def __init__(self, diagonal: float = 0.875, times: TimeLaw | None = None, clip: float = 4.0) -> None:
        super().__init__(diagonal, times)
        self.clip = clip

    def pair(self, rng, count, step):
        """2h = 2^−m, m = 0…6, and t a multiple of 2h in (0, 1]."""
        span = 2.0 ** -torch.floor(rng.uniform("m", count) * HALVINGS)
        t = (torch.floor(rng.uniform("t", count) / span) + 1) * span
        return t, t - span

    def residual(self, model, teacher, x: Noised, step):
        h = (x.t - x.s) / 2
        middle = x.t - h
        smallest = h <= SMALLEST
        with torch.no_grad():
            first = teacher.velocity(x.x_t, x.t, torch.where(smallest, x.t, middle), x.context)
            x_m = x.x_t - expand(h, x.x_t) * first
            second = teacher.velocity(x_m, middle, torch.where(smallest, middle, x.s), x.context)
            target = ((first + second) / 2).clamp(-self.clip, self.clip)
        return x.velocity(model) - target
