"""Few-step distillation along the teacher's own trajectories (2101.02388, here on logits and for every pair of times).

    x_{i+1} = X(x_i; p_i) from u_i to u_{i+1},   p_i = p_{u_i→u_i}(x_i),   t = u_0 > … > u_n = s
    q = Σ_i w_i p_i,   w_i = (1/u_{i+1} − 1/u_i)/(1/s − 1/t)

since p_{t→s} is the mean of p_{u→u} over (1−u)/u along the way (math.md §2): only the denoiser is asked, so no error of the
few-step map comes back into its target. The price is n calls of the network where progressive distillation makes two, and
what n steps of DDIM leave of the flow's curvature.
"""

from typing import Any

import torch
from torch import Tensor

from flowmap.objectives.tokens.base import NoisedTokens
from flowmap.objectives.tokens.kl_psd import WholeJumps
from flowmap.path import expand


class TrajectoryKL(WholeJumps):
    """num_steps: n, evenly spaced in time."""

    def __init__(self, *args: Any, num_steps: int = 8, **more: Any) -> None:
        super().__init__(*args, **more)
        if num_steps < 1:
            raise ValueError(f"num_steps {num_steps}: a trajectory has 1 at least")
        self.num_steps = num_steps

    def target(self, teacher, x: NoisedTokens, step):
        local, at, now = self.local(teacher), x.x_t, x.t
        q: Any = 0.0
        for i in range(1, self.num_steps + 1):
            z = local.logits(at, now, now, x.context)
            p = z.softmax(-1)
            after = x.t + (x.s - x.t) * (i / self.num_steps)
            q = p if i == 1 else torch.lerp(p, q, self._kept(x.t, now, after, p))
            if i < self.num_steps:
                after = after.clamp_min(self.t_min)
                at, now = local.path.jump(at, local.codebook.expected(z), now, after), after
        return q

    def _kept(self, t: Tensor, u: Tensor, s: Tensor, p: Tensor) -> Tensor:
        """Share of [u, t] in the mean over [s, t]: s(t−u)/(u(t−s))."""
        return expand((s * (t - u) / (u * (t - s)).clamp_min(1e-12)).clamp(0, 1), p)
