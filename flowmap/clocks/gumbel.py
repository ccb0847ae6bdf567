"""A Gumbel law in the noise-to-signal ratio: cross-entropy of one shape, fitted on the way (LangFlow 2604.11748).

    γ = log(σ²ν²/α²) = −log S,     CE(γ) = H·F(γ),   F(γ) = exp(−exp(−(γ − μ)/β)),     q(γ) = dF/dγ,   γ = μ − β·log(−log u)

CE is H, the entropy of a token alone, in pure noise (γ → ∞) and 0 at the data (γ → −∞). H, μ and β are the weighted least
squares on the bins, by a few Levenberg–Marquardt steps from where they stood.
"""

import math

import torch
from torch import Tensor

from flowmap.clocks.base import Clock
from flowmap.path import LinearPath, Path


class Gumbel(Clock):
    """reach: bins cover |γ| ≤ reach. mu, beta: before anything is heard."""

    fitted: Tensor
    damping: Tensor

    def __init__(
        self, path: Path | None = None, mu: float = 0.0, beta: float = 1.0, bins: int = 200, decay: float = 0.995,
        reach: float = 20.0,
    ) -> None:  # fmt: skip
        super().__init__(bins, decay)
        if not beta > 0:
            raise ValueError(f"beta {beta} must be positive: it is the width of the fall")
        self.path, self.reach = path or LinearPath(), reach
        start = torch.tensor([0.0, mu, beta], dtype=torch.float64)
        self.register_buffer("fitted", torch.cat([start[:2], start[2:].log()]))
        self.register_buffer("damping", torch.full((), 1e-3, dtype=torch.float64))

    @property
    def law(self) -> tuple[float, float, float]:
        """(H in nats a token, μ, β)."""
        h, mu, log_beta = self.fitted.tolist()
        return h, mu, math.exp(log_beta)

    def gamma(self, t: Tensor) -> Tensor:
        return -self.path.log_snr(t) + 2 * math.log(self.path.noise_scale)

    def coordinate(self, t: Tensor) -> Tensor:
        return self.gamma(t).clamp(-self.reach, self.reach) / (2 * self.reach) + 0.5

    def time_of(self, u: Tensor) -> Tensor:
        _, mu, log_beta = self.fitted
        gamma = mu - log_beta.exp() * torch.log(-torch.log(u.clamp(2.0**-33, 1 - 2.0**-33)))
        return self.path.from_ratio((gamma.clamp(-2 * self.reach, 2 * self.reach) / 2).exp() / self.path.noise_scale)

    def refit(self, steps: int = 4) -> None:
        nats, tokens, place = self.told
        weight = tokens / tokens.sum().clamp_min(1e-300)
        heard = tokens.clamp_min(1e-300)
        ce, gamma = nats / heard, (place / heard - 0.5) * 2 * self.reach
        here = self.fitted
        for _ in range(steps):
            value, slopes = curve(here, gamma)
            normal = slopes.T @ (weight[:, None] * slopes)
            pull = slopes.T @ (weight * (ce - value))
            step = torch.linalg.solve(normal + torch.diag(self.damping * normal.diagonal() + 1e-9), pull)
            there = here + step
            there = torch.stack([there[0], there[1].clamp(-self.reach, self.reach), there[2].clamp(-3, 3)])
            better = (weight * (ce - curve(there, gamma)[0]).square()).sum() < (weight * (ce - value).square()).sum()
            here = torch.where(better, there, here)
            self.damping.copy_((self.damping * torch.where(better, 0.3, 5.0)).clamp(1e-9, 1e6))
        self.fitted.copy_(here)


def curve(parameters: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """H·F(γ), (n,), and its derivatives by H, μ and log β, (n, 3)."""
    h, mu, log_beta = parameters
    z = ((gamma - mu) / log_beta.exp()).clamp_min(-30)
    fall = (-z).exp()
    f = (-fall).exp()
    steep = h * f * fall
    return h * f, torch.stack([f, -steep / log_beta.exp(), -steep * z], -1)
