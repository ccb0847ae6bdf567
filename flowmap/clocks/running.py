"""A running fit of the cross-entropy: times at which it falls evenly (CDCD 2211.15089; math.md §4).

    q(t) = (1 − u)·(|dCE/dt| + floor)/Z + u

CE(t) is the mean of 100 bins, smoothed over 2 bins to each side and made to rise: the posterior of a noisier state knows
less, so what falls is noise. The fit is the weighted isotonic regression, max over j ≤ i of the min over k ≥ i of the mean
of bins j..k. Before anything is heard the law is uniform.
"""

import torch
from torch import Tensor

from flowmap.clocks.base import Clock
from flowmap.times import Tabled

SMOOTH = (1.0, 2.0, 3.0, 2.0, 1.0)


class Running(Clock, Tabled):
    """uniform: share u of even draws. floor: in nats a token over the whole of [0, 1]."""

    def __init__(self, bins: int = 100, decay: float = 0.995, uniform: float = 0.1, floor: float = 1e-3) -> None:
        super().__init__(bins, decay)
        self.uniform, self.floor = uniform, floor
        edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
        times = torch.cat([edges[:1], (edges[1:] + edges[:-1]) / 2, edges[-1:]])
        self.set_table(times, times.clone(), saved=True)

    def coordinate(self, t: Tensor) -> Tensor:
        return t

    def cross_entropy(self) -> Tensor:
        """CE in nats a token at the middles of the bins, (bins,), rising."""
        nats, tokens = self.told[0], self.told[1]
        kernel = torch.tensor(SMOOTH, dtype=nats.dtype, device=nats.device)[None, None]
        nats, tokens = torch.conv1d(torch.stack([nats, tokens])[:, None], kernel, padding=len(SMOOTH) // 2)[:, 0]
        faint = tokens.sum() * 1e-6 + 1e-300  # so that an empty bin takes after its neighbours
        return isotonic((nats + faint * nats.sum() / tokens.sum().clamp_min(1e-300)) / (tokens + faint), tokens + faint)

    def refit(self) -> None:
        rising = self.cross_entropy()
        at = torch.cat([rising[:1], rising, rising[-1:]]) + self.floor * self.times
        risen = (at - at[0]) / (at[-1] - at[0])
        self.shares.copy_(torch.lerp(risen, self.times, self.uniform))


def isotonic(values: Tensor, weights: Tensor) -> Tensor:
    """The rising sequence nearest to values in the weighted mean square, (n,), in O(n²) without a loop."""
    mass = torch.nn.functional.pad(weights.cumsum(0), (1, 0))
    total = torch.nn.functional.pad((weights * values).cumsum(0), (1, 0))
    mean = (total[1:] - total[:-1, None]) / (mass[1:] - mass[:-1, None])  # of j..k
    inside = torch.ones_like(mean, dtype=torch.bool).triu()
    least = mean.masked_fill(~inside, torch.inf).flip(1).cummin(1).values.flip(1)  # over k ≥ i, a row a j
    return least.masked_fill(~inside, -torch.inf).amax(0)
