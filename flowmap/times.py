"""Where on [0, 1] a loss looks: laws of single times and of pairs s ≤ t.

    t = F⁻¹(u),   u ~ U[0, 1) addressed by `Rng.place`: independent, or even over the global batch (2107.00630)

F⁻¹ rises. A law that learns on the way (a clock) is told how many nats a token cost at the times it gave.
"""

import torch
from torch import Tensor, nn

from flowmap.rng import Rng


class TimeLaw(nn.Module):
    """What all share. What a law has learned are its own buffers, saved and restored with the objective that holds it.
    listens: whether it wants statistics."""

    listens = False

    def time_of(self, u: Tensor) -> Tensor:
        """F⁻¹: places in [0, 1), float64 → times, rising with them."""
        raise NotImplementedError

    def draw(self, rng: Rng, name: str, count: int) -> Tensor:
        """(count,) times, fp32."""
        return self.time_of(rng.place(name, count)).float()

    def share_below(self, t: Tensor) -> Tensor:
        """F(t), float64, by bisection."""
        low, high = torch.zeros_like(t, dtype=torch.float64), torch.ones_like(t, dtype=torch.float64)
        for _ in range(52):
            middle = (low + high) / 2
            below = self.time_of(middle) < t
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return low

    def statistics(self, t: Tensor, nats: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """What is to be summed over the samples of a global batch, by name: of rows at times t that cost so many nats over
        so many tokens, (rows,) each. The same names and shapes however few the rows are."""
        return {}

    def learn(self, statistics: dict[str, Tensor]) -> None:
        """After every optimizer step, with the sums over all slices and ranks."""


class Uniform(TimeLaw):
    """U(low, high)."""

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        self.low, self.high = low, high

    def time_of(self, u: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * u


class LogitNormal(TimeLaw):
    """sigmoid(N(mean, deviation²)): most of the weight away from both ends (2403.03206)."""

    def __init__(self, mean: float = -0.4, deviation: float = 1.0) -> None:
        super().__init__()
        self.mean, self.deviation = mean, deviation

    def time_of(self, u: Tensor) -> Tensor:
        normal = torch.special.ndtri(u.clamp(2.0**-33, 1 - 2.0**-33))
        return torch.sigmoid(self.mean + self.deviation * normal)


class Tabled(TimeLaw):
    """F by straight lines between points. times, shares: (points,), both rising, shares from 0 to 1."""

    times: Tensor
    shares: Tensor

    def set_table(self, times: Tensor, shares: Tensor, saved: bool = False) -> None:
        """saved: with the objective's state; else it follows from what the law was made of."""
        self.register_buffer("times", times, persistent=saved)
        self.register_buffer("shares", shares, persistent=saved)

    def time_of(self, u: Tensor) -> Tensor:
        return interpolate(u, self.shares, self.times)


def interpolate(at: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """The line through the points (xs, ys), xs rising, read at `at`; level beyond the first and the last."""
    place = torch.searchsorted(xs, at.detach().contiguous()).clamp(1, len(xs) - 1)
    left, right = xs[place - 1], xs[place]
    share = ((at - left) / (right - left).clamp_min(1e-300)).clamp(0, 1)
    return torch.lerp(ys[place - 1], ys[place], share)


def ordered_pair(law: TimeLaw, rng: Rng, count: int) -> tuple[Tensor, Tensor]:
    """Two independent times, the later (noisier) first: (t, s)."""
    one, other = law.draw(rng, "t", count), law.draw(rng, "s", count)
    return torch.maximum(one, other), torch.minimum(one, other)
