"""A law of time that looks where a token is being decided, not evenly over [0, 1].

    q(t) = E_z Φ(z + α/(σν))^{V−1} = P(argmax x_t is the token),   τ = V/(V−1)·(q − 1/V)       (2602.16813; math.md §4)

for one-hot codes under noise of deviation ν: τ falls from 1 at t = 0 to 0 at t = 1, and t is drawn so that τ is uniform.
At V = 2,048, on the linear path with ν = 1, half of all t lie where τ is below 0.01: there is nothing to be seen yet.
"""

import math

import torch
from torch import Tensor

from flowmap.path import LinearPath, Path
from flowmap.times import Tabled, interpolate


class DecodeError(Tabled):
    """size: V. uniform: share of the draws that are even over [low, high] instead (0.1 in 2604.09784). points: of the table
    of τ(t), which is read by straight lines."""

    risen: Tensor

    def __init__(
        self, size: int, path: Path | None = None, uniform: float = 0.0, low: float = 0.0, high: float = 1.0,
        points: int = 4096,
    ) -> None:  # fmt: skip
        super().__init__()
        if size < 2:
            raise ValueError(f"{size} tokens: decoding errs between 2 at least")
        self.size, self.path = size, path or LinearPath()
        times = torch.linspace(low, high, points, dtype=torch.float64)
        tau = self.progress(times).cummin(0).values
        risen = (tau[0] - tau) / (tau[0] - tau[-1])
        self.set_table(times, torch.lerp(risen, torch.linspace(0, 1, points, dtype=torch.float64), uniform))
        self.register_buffer("risen", risen, persistent=False)

    def progress(self, t: Tensor) -> Tensor:
        """τ(t), in float64."""
        t = t.double()
        level = self.path.alpha(t) / (self.path.sigma(t) * self.path.noise_scale).clamp_min(1e-300)
        z, weight = _normal_nodes()
        log_below = torch.special.log_ndtr(z + level[..., None])
        q = ((self.size - 1) * log_below).exp() @ weight
        return (self.size * q - 1) / (self.size - 1)

    def time_at(self, tau: Tensor) -> Tensor:
        """The time in [low, high] at which τ has fallen to this share of its way."""
        return interpolate(1 - tau, self.risen, self.times)


def _normal_nodes(count: int = 2001, reach: float = 9.0) -> tuple[Tensor, Tensor]:
    """Points and weights of an expectation over N(0, 1): the trapezium rule, which is exact to rounding for it."""
    z = torch.linspace(-reach, reach, count, dtype=torch.float64)
    return z, (-z.square() / 2).exp() / math.sqrt(2 * math.pi) * (2 * reach / (count - 1))
