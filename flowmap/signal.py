"""Where the variational bound looks: laws of the signal-to-noise ratio S = α²/(σ²ν²) between the ends of its integral.

    ½∫ e(S) dS = E_u[w(u)·e(S(u))],   w = ½·dS/du,   u ~ U[0, 1) from t_max to t_min or back

for any law that leaves no time out: w is what makes one time a sample unbiased (2107.00630). All in float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowmap.path import Path
from flowmap.times import TimeLaw


@dataclass(frozen=True)
class Looks:
    """t, weight: (count,), w of every time. log_density: of the law at its times, where the law itself learns."""

    t: Tensor
    weight: Tensor
    log_density: Tensor | None = None


class SignalLaw(nn.Module):
    """t_min, t_max: the ends."""

    def __init__(self, t_min: float, t_max: float) -> None:
        super().__init__()
        if not 0 < t_min < t_max <= 1:
            raise ValueError(f"times from {t_min} to {t_max}: 0 < t_min < t_max ≤ 1 is needed")
        self.t_min, self.t_max = t_min, t_max

    def ends(self, path: Path, device: torch.device) -> tuple[Tensor, Tensor]:
        """(t_min, t_max), scalars; with a gradient where they are learned."""
        low, high = torch.tensor([self.t_min, self.t_max], dtype=torch.float64, device=device)
        return low, high

    def draw(self, path: Path, u: Tensor) -> Looks:
        raise NotImplementedError

    def lesson(self, looks: Looks, drift: Tensor) -> Tensor:
        """What the law itself is to make small, a scalar; drift: w·e of each sample, nats."""
        return torch.zeros((), device=drift.device)

    def statistics(self, looks: Looks, drift: Tensor, nats: Callable[[], Tensor], tokens: Tensor) -> dict[str, Tensor]:
        """As of a TimeLaw."""
        return {}

    def learn(self, statistics: dict[str, Tensor]) -> None:
        """As of a TimeLaw."""


class LogSNR(SignalLaw):
    """λ = log S, uniform between the ends; or with a scale λ ~ center + scale·logistic, cut to them: less variance where
    most of the integral is known to be. Center 0 and scale 2 are uniform in t on the linear path with ν = 1."""

    def __init__(self, t_min: float, t_max: float, center: float = 0.0, scale: float | None = None) -> None:
        super().__init__(t_min, t_max)
        if scale is None and t_max == 1:
            raise ValueError(f"times up to {t_max}: t_max < 1 for log-snr, whose range would have no end")
        if scale is not None and scale < 1:
            raise ValueError(f"scale {scale} below 1: the weight of the noisiest times would have no bound")
        self.center, self.scale = center, scale

    def draw(self, path: Path, u: Tensor) -> Looks:
        low, high = self.ends(path, u.device)
        first, last = log_snr(path, high), log_snr(path, low)
        if self.scale is None:
            lam, rate = first + (last - first) * u, last - first
        else:
            below, above = (torch.sigmoid((end - self.center) / self.scale) for end in (first, last))
            f = (below + (above - below) * u).clamp(1e-12, 1 - 1e-12)
            lam = self.center + self.scale * torch.logit(f)
            rate = (above - below) * self.scale / (f * (1 - f))
        return Looks(time_of(path, lam), lam.exp() * rate / 2)


class Cut(SignalLaw):
    """Any law of time, cut to the ends; it must leave no time between them out. A clock learns here too."""

    def __init__(self, times: TimeLaw, t_min: float, t_max: float) -> None:
        super().__init__(t_min, t_max)
        self.times = times

    def draw(self, path: Path, u: Tensor) -> Looks:
        ends = torch.stack(self.ends(path, u.device))
        low, high = self.times.share_below(ends).unbind()
        place = low + (high - low) * u
        t, slope = torch.func.jvp(self.times.time_of, (place,), (torch.ones_like(u),))  # type: ignore[misc]
        t = t.clamp(self.t_min, self.t_max)
        return Looks(t, path.snr_fall(t) / path.noise_scale**2 * slope * (high - low) / 2)

    def statistics(self, looks, drift, nats, tokens):
        return self.times.statistics(looks.t, nats(), tokens) if self.times.listens else {}

    def learn(self, statistics):
        self.times.learn(statistics)


def log_snr(path: Path, t: Tensor) -> Tensor:
    """λ = log(α²/(σ²ν²))."""
    return path.log_snr(t) - 2 * math.log(path.noise_scale)


def time_of(path: Path, lam: Tensor) -> Tensor:
    """t at which log S = λ."""
    return path.from_ratio((-lam / 2).exp() / path.noise_scale)
