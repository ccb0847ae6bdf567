"""Improved MeanFlow (2512.02012): the same identity as a regression on ε − x whose prediction has no hidden target.

V = u(x_t,t,s) + (t−s)·sg(JVP of u along (v_θ(x_t,t,t), 1, 0)),   Δ = V − (ε−x)
"""

import torch

from flowmap.objectives.base import derivative
from flowmap.objectives.mean_flow import MeanFlow
from flowmap.objectives.two_time import Noised


class ImprovedMeanFlow(MeanFlow):
    def residual(self, model, teacher, x: Noised, step):
        with torch.no_grad():
            local = teacher.velocity(x.x_t, x.t, x.t, x.context)
            _, du_dt = derivative(teacher.velocity, (x.x_t, x.t, x.s), (local, 1.0, 0.0), x.context)
        return x.velocity(model) + x.span() * du_dt - x.dx
