"""Laws of time that look where a token is being decided, not evenly over [0, 1].

    q(t) = E_z Φ(z + α/(σν))^{V−1} = P(argmax x_t is the token),   τ = V/(V−1)·(q − 1/V)       (2602.16813; math.md §4)

for one-hot codes under noise of deviation ν: τ falls from 1 at t = 0 to 0 at t = 1, and t is drawn so that τ is uniform.
At V = 2,048, on the linear path with ν = 1, half of all t lie where τ is below 0.01: there is nothing to be seen yet.
"""

import math
from functools import cached_property

import torch
from torch import Tensor

from flowmap.path import LinearPath, Path
from flowmap.rng import Rng


class DecodeError:
    """size: V. uniform: share of the draws that are even over [low, high] instead (0.1 in 2604.09784). points: of the table
    of t(τ), which is read by straight lines."""

    def __init__(
        self, size: int, path: Path | None = None, uniform: float = 0.0, low: float = 0.0, high: float = 1.0,
        points: int = 4096,
    ) -> None:  # fmt: skip
        if size < 2:
            raise ValueError(f"{size} tokens: decoding errs between 2 at least")
        self.size, self.path, self.uniform, self.low, self.high, self.points = (
            size,
            path or LinearPath(),
            uniform,
            low,
            high,
            points,
        )

    def draw(self, rng: Rng, name: str, count: int) -> Tensor:
        u = rng.uniform(name, count, dtype=torch.float64)
        even = self.low + (self.high - self.low) * u / max(self.uniform, 1e-12)
        tau = (u - self.uniform) / (1 - self.uniform)
        return torch.where(u < self.uniform, even, self.time_of(tau)).float()

    def progress(self, t: Tensor) -> Tensor:
        """τ(t), in float64."""
        t = t.double()
        level = self.path.alpha(t) / (self.path.sigma(t) * self.path.noise_scale).clamp_min(1e-300)
        z, weight = _normal_nodes()
        log_below = torch.special.log_ndtr(z + level[..., None])
        q = ((self.size - 1) * log_below).exp() @ weight
        return (self.size * q - 1) / (self.size - 1)

    def time_of(self, tau: Tensor) -> Tensor:
        """The time in [low, high] at which τ has fallen to this."""
        times, falls = self._table
        place = torch.searchsorted(falls, tau.clamp(0, 1).contiguous()).clamp(1, len(falls) - 1)
        left, right = falls[place - 1], falls[place]
        share = ((tau - left) / (right - left).clamp_min(1e-300)).clamp(0, 1)
        return torch.lerp(times[place - 1], times[place], share)

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        """Falling times and their τ, rising from 0 at `high` to 1 at `low`."""
        times = torch.linspace(self.high, self.low, self.points, dtype=torch.float64)
        tau = self.progress(times).cummax(0).values
        return times, (tau - tau[0]) / (tau[-1] - tau[0])


def _normal_nodes(count: int = 2001, reach: float = 9.0) -> tuple[Tensor, Tensor]:
    """Points and weights of an expectation over N(0, 1): the trapezium rule, which is exact to rounding for it."""
    z = torch.linspace(-reach, reach, count, dtype=torch.float64)
    return z, (-z.square() / 2).exp() / math.sqrt(2 * math.pi) * (2 * reach / (count - 1))
