"""Progressive self-distillation on logits (2604.09784): one jump's distribution is that of two, mixed.

    q = a·p_{t→u}(x_t) + (1−a)·p_{u→s}(X_{t→u}(x_t)),   a = s(t−u)/(u(t−s)),   s ≤ u ≤ t

since p_{t→s} is an average of p_{u→u} along the trajectory (math.md §2). No derivative is taken. Where tokens have times of
their own, the way from t to s is the straight one, on which u lies: one γ for all of them. The pair (1, 0), one
step from noise to data, has measure zero under any density, so it is drawn with a probability of its own.
"""

import torch

from flowmap.objectives.tokens.base import NoisedTokens, TokenObjective
from flowmap.path import expand


class WholeJumps(TokenObjective):
    """boundary: probability of (t, s) = (1, 0), off the diagonal, of each pair that is drawn."""

    def __init__(self, *args, boundary: float = 1 / 32, **more) -> None:
        super().__init__(*args, **more)
        self.boundary = boundary

    def pair(self, rng, count, step):
        t, s = super().pair(rng, count, step)
        whole = rng.uniform("boundary", count) < self.boundary
        return torch.where(whole, 1.0, t), torch.where(whole, 0.0, s)


class ProgressiveKL(WholeJumps):
    """gamma: u = s + γ(t−s), γ ~ U(0, 1) unless fixed."""

    each_token = True

    def __init__(self, *args, gamma: float | None = None, **more) -> None:
        super().__init__(*args, **more)
        self.gamma = gamma

    def target(self, teacher, x: NoisedTokens, step):
        gamma = x.u if self.gamma is None else self.gamma
        u = torch.minimum((x.s + gamma * (x.t - x.s)).clamp_min(self.t_min), x.t)
        z = teacher.logits(x.x_t, x.t, u, x.context)
        x_u = teacher.path.jump(x.x_t, teacher.codebook.expected(z), x.t, u)
        second = teacher.logits(x_u, u, x.s, x.context)
        a = x.s * (x.t - u) / (u * (x.t - x.s)).clamp_min(1e-12)
        a = expand(a.clamp(0, 1), z)  # rounding beyond 1 would make a probability negative
        return a * z.softmax(-1) + (1 - a) * second.softmax(-1)
