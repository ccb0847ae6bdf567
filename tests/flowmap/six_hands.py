"""Six poker hands of two words, all alike likely: a law of token pairs small enough to know everything about it.

The posterior of a noised pair in closed form, the exact two-time map by integrating the flow, and parameters that push
the map off the truth. H = log 6; the words taken one by one cost log 6 + H(1/6, 2/6, 1/6, 2/6).
"""

import math

import torch
from torch import Tensor, nn

from flowmap.codebook import OneHot
from flowmap.path import LinearPath, Path, expand

HANDS = ("high card", "one pair", "two pair", "full house", "straight flush", "royal flush")
WORDS = sorted({word for hand in HANDS for word in hand.split()})
TOKENS = torch.tensor([[WORDS.index(word) for word in hand.split()] for hand in HANDS])
ENTROPY = math.log(6)
INDEPENDENT = math.log(6) + math.log(6) / 3 + math.log(3) * 2 / 3


def hands(count: int) -> Tensor:
    """(count, 2): every hand as often as every other."""
    return TOKENS.repeat(-(-count // 6), 1)[:count]


class SixHands(nn.Module):
    """Behind FlowMap's names, for one-hot codes on the linear path. With r = α/σ and y = x/σ the flow is
    dy/dr = p(y, r), so g_{t→s} is the mean of p over r ∈ [r_t, r_s]: here over the stages of RK4, smooth in t and s.
    Below `floor` p is one-hot to 1e-100, and the rest of the mean is known without integrating.

    θ (four numbers, 0 at the truth) adds to the logits: a fixed pattern, one times t−s, one that depends on x_t, and
    a rescaling.
    """

    def __init__(self, theta=(0.0, 0.0, 0.0, 0.0), steps: int = 24, floor: float = 0.02, nu: float = 1.0) -> None:
        super().__init__()
        self.path: Path = LinearPath(noise_scale=nu)
        self.codebook = OneHot(len(WORDS)).double()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))
        self.nu, self.floor = nu, floor
        self.members = nn.functional.one_hot(TOKENS, len(WORDS)).double().flatten(1)  # (6, 2·V)
        self.mesh = torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** 2  # finest where it starts
        pattern = torch.Generator().manual_seed(0)
        self.pattern = torch.randn(3, 2, len(WORDS), dtype=torch.float64, generator=pattern)

    def posterior(self, y: Tensor, r: Tensor) -> Tensor:
        """p(x^l | y = x_t/σ_t), r = α_t/σ_t: (batch, 2·V), as y."""
        return (r[:, None] / self.nu**2 * (y @ self.members.T)).softmax(-1) @ self.members

    def probabilities(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """p_{t→s}(x) of the exact map."""
        r_t = (1 - t) / t
        y = x.flatten(1) / t[:, None]
        if s is t:
            return self.posterior(y, r_t).view_as(x)
        low = torch.minimum(s.clamp_min(self.floor), t)
        span = (1 - low) / low - r_t
        mean = torch.zeros_like(y)
        for begin, width in zip(self.mesh[:-1], self.mesh.diff(), strict=True):
            r, h = r_t + begin * span, width * span
            step = h[:, None]
            a = self.posterior(y, r)
            b = self.posterior(y + step / 2 * a, r + h / 2)
            c = self.posterior(y + step / 2 * b, r + h / 2)
            d = self.posterior(y + step * c, r + h)
            slope = (a + 2 * (b + c) + d) / 6
            mean, y = mean + width * slope, y + step * slope
        if bool((s < low).any()):
            share = (s * (t - low) / (low * (t - s)).clamp_min(1e-300))[:, None]
            mean = share * mean + (1 - share) * self.posterior(y, r_t + span)
        return mean.view_as(x)

    def logits(self, x: Tensor, t: Tensor, s: Tensor, context=None) -> Tensor:
        z = (self.probabilities(x, t, s) + 1e-30).log()
        a, b, c, d = self.theta
        fixed, timed, seen = self.pattern
        off = a * fixed + b * expand(t - s, x) * timed + c * seen * torch.tanh(x.sum((1, 2), keepdim=True))
        return z * (1 + d) + off

    def velocity(self, x: Tensor, t: Tensor, s: Tensor, context=None) -> Tensor:
        return self.path.secant(x, self.codebook.expected(self.logits(x, t, s)), t)


def exact_flow(x: Tensor, t: float, s: float) -> Tensor:
    """X_{t→s} of dx/dt = (x − E[x_0 | x_t])/t by scipy, to 1e-10."""
    from scipy.integrate import solve_ivp

    oracle = SixHands()

    def rate(time, state):
        at = torch.from_numpy(state).reshape(x.shape)
        now = torch.full((len(at),), time, dtype=torch.float64)
        return ((at - oracle.probabilities(at, now, now)) / time).flatten().numpy()

    found = solve_ivp(rate, (t, s), x.flatten().numpy(), method="DOP853", rtol=1e-10, atol=1e-12)
    return torch.from_numpy(found.y[:, -1]).reshape(x.shape)
