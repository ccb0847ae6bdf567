"""Few-step distillation along the teacher's own trajectories (2101.02388, here on logits and for every pair of times).

    x_{i+1} = X(x_i; p_i) from u_i to u_{i+1},   p_i = p_{u_i→u_i}(x_i),   t = u_0 > … > u_n = s
    q = Σ_i w_i p_i,   w_i = (1/u_{i+1} − 1/u_i)/(1/s − 1/t)

since p_{t→s} is the mean of p_{u→u} over (1−u)/u along the way (math.md §2): only the denoiser is asked, so no error of the
few-step map comes back into its target. The price is n calls of the network where progressive distillation makes two, and
what n steps of DDIM leave of the flow's curvature. Between two u_i lie equal shares of the times that training looks at.
"""

from typing import Any

import torch
from torch import Tensor

from flowmap.objectives.tokens.base import NoisedTokens
from flowmap.objectives.tokens.kl_psd import WholeJumps
from flowmap.path import expand
from flowmap.rng import Rng


class TrajectoryKL(WholeJumps):
    """num_steps: n. jumps: greatest number of jumps, a power of two, that a text is to be written in: off the diagonal every draw is
    one of the 1, 2, 4, … jumps of equal shares that samplers on the grid "clock" make; None: of any length."""

    def __init__(self, *args: Any, num_steps: int = 8, jumps: int | None = None, **more: Any) -> None:
        super().__init__(*args, **more)
        if num_steps < 1:
            raise ValueError(f"num_steps {num_steps}: a trajectory has 1 at least")
        if jumps is not None and (jumps < 1 or jumps & (jumps - 1)):
            raise ValueError(f"jumps {jumps} must be a power of two")
        self.num_steps, self.jumps = num_steps, jumps

    def pair(self, rng: Rng, count: int, step: int) -> tuple[Tensor, Tensor]:
        if self.jumps is None:
            return super().pair(rng, count, step)
        n = 2.0 ** (rng.uniform("jumps", count, dtype=torch.float64) * self.jumps.bit_length()).floor()
        left = n - (rng.place("t", count) * n).floor()  # shares of the law that are still to go
        t, s = (self.times.time_of(share / n).float() for share in (left, left - 1))
        return torch.where(left == n, 1.0, t), torch.where(left == 1, 0.0, s)

    def target(self, teacher, x: NoisedTokens, step):
        local, at, now = self.local(teacher), x.x_t, x.t
        begin, end = (self.times.share_below(time) for time in (x.t, x.s))
        q: Any = 0.0
        for i in range(1, self.num_steps + 1):
            z = local.logits(at, now, now, x.context)
            p = z.softmax(-1)
            after = x.s if i == self.num_steps else self._between(x, begin, end, i / self.num_steps)
            q = p if i == 1 else torch.lerp(p, q, self._kept(x.t, now, after, p))
            if i < self.num_steps:
                at, now = local.path.jump(at, local.codebook.expected(z), now, after), after
        return q

    def _between(self, x: NoisedTokens, begin: Tensor, end: Tensor, way: float) -> Tensor:
        """The time at which this share of the way from t to s, counted in the law's own shares, is behind."""
        u = self.times.time_of(torch.lerp(begin, end, way)).to(x.t)
        return torch.minimum(torch.maximum(u, x.s), x.t).clamp_min(self.t_min)

    def _kept(self, t: Tensor, u: Tensor, s: Tensor, p: Tensor) -> Tensor:
        """Share of [u, t] in the mean over [s, t]: s(t−u)/(u(t−s))."""
        return expand((s * (t - u) / (u * (t - s)).clamp_min(1e-12)).clamp(0, 1), p)
