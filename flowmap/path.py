"""Paths x_t = α_t x_0 + σ_t ε, ε ~ N(0, ν²I), between data (t = 0) and noise (t = 1). See math.md §1.

What a network says about x_t is the secant direction v = e − g, where g stands for the data's end
and e for the noise's end of x_t = α_t g + σ_t e. It is the velocity on the linear path, and has no
pole on either: every jump divides by α_t + σ_t ≥ 1 alone. Times: (batch,), or (batch, position).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowmap.rng import Rng


def expand(t: Tensor, like: Tensor) -> Tensor:
    """t over the leading axes of a state → t with trailing axes of one, so that it broadcasts."""
    return t.reshape(*t.shape, *[1] * (like.ndim - t.ndim))


@dataclass(frozen=True)
class Path:
    """noise_scale: ν, the deviation of x_1. Everything is computed in the number type of t."""

    noise_scale: float = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def alpha_rate(self, t: Tensor) -> Tensor:
        """dα/dt."""
        raise NotImplementedError

    def sigma_rate(self, t: Tensor) -> Tensor:
        """dσ/dt."""
        raise NotImplementedError

    def from_ratio(self, eta: Tensor) -> Tensor:
        """The time at which σ/α = η."""
        raise NotImplementedError

    def ratio(self, t: Tensor) -> Tensor:
        """η_t = σ_t/α_t; infinite where α is 0."""
        return self.sigma(t) / self.alpha(t)

    def snr(self, t: Tensor) -> Tensor:
        """S_t = α_t²/σ_t²."""
        return (self.alpha(t) / self.sigma(t)).square()

    def log_snr(self, t: Tensor) -> Tensor:
        """λ_t = log S_t."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def log_snr_fall(self, t: Tensor) -> Tensor:
        """−dλ/dt."""
        return 2 * (self.sigma_rate(t) / self.sigma(t) - self.alpha_rate(t) / self.alpha(t))

    def snr_fall(self, t: Tensor) -> Tensor:
        """−dS/dt = 2α(ασ' − α'σ)/σ³; 0 at t = 1."""
        alpha, sigma = self.alpha(t), self.sigma(t)
        return 2 * alpha * (alpha * self.sigma_rate(t) - self.alpha_rate(t) * sigma) / sigma**3

    def draw_noise(self, rng: Rng, name: str, like: Tensor) -> Tensor:
        """ε ~ N(0, ν²I), the shape, place and type of `like`."""
        return self.noise_scale * rng.normal(name, *like.shape, dtype=like.dtype).to(like.device)

    def noise(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_0, eps: (batch, *state) → x_t."""
        t = expand(t, x_0)
        return self.alpha(t) * x_0 + self.sigma(t) * eps

    def ends(self, x_t: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(g, e) with x_t = α_t g + σ_t e and v = e − g."""
        t = expand(t, x_t)
        alpha, sigma = self.alpha(t), self.sigma(t)
        return (x_t - sigma * v) / (alpha + sigma), (x_t + alpha * v) / (alpha + sigma)

    def secant(self, x_t: Tensor, g: Tensor, t: Tensor) -> Tensor:
        """v of a data end g: (x_t − (α+σ)g)/σ. Needs t > 0."""
        t = expand(t, x_t)
        return (x_t - (self.alpha(t) + self.sigma(t)) * g) / self.sigma(t)

    def move(self, x_t: Tensor, v: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """X_{t→s} = α_s g + σ_s e, DDIM's jump; x_t itself at s = t. On the linear path x_t + (s−t)v."""
        to_x, to_v = self.coefficients(t, s)
        return expand(to_x, x_t) * x_t + expand(to_v, x_t) * v

    def coefficients(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """(A, B) of the jump A·x_t + B·v."""
        alpha_t, sigma_t, alpha_s, sigma_s = self.alpha(t), self.sigma(t), self.alpha(s), self.sigma(s)
        total = alpha_t + sigma_t
        return (alpha_s + sigma_s) / total, (sigma_s * alpha_t - alpha_s * sigma_t) / total

    def jump(self, x_t: Tensor, g: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """DDIM by the data's end: (α_s − σ_s α_t/σ_t)·g + (σ_s/σ_t)·x_t. Needs t > 0."""
        return self.move(x_t, self.secant(x_t, g, t), t, s)

    def expected(self, codebook: Any, logits: Tensor, x_t: Tensor) -> Tensor:
        """g: the data's end that x_t heads for when these are the logits of its tokens, (B, N, V)."""
        return codebook.expected(logits)

    def prior_logits(self, codebook: Any, x_t: Tensor, t: Tensor) -> Tensor:
        """What x_t says of each token by itself, (B, N, V). Needs t > 0."""
        return codebook.prior_logits(x_t, self.alpha(t), self.sigma(t), self.noise_scale)

    def input_scale(self, t: Tensor, data_scale: float) -> Tensor:
        """c_in, which brings x_t of data of this deviation to unit variance."""
        return (self.alpha(t) ** 2 * data_scale**2 + self.sigma(t) ** 2 * self.noise_scale**2).rsqrt()

    def ode(self, x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """dx/dt = α'g + σ'e of the probability flow when v is the local one (s = t)."""
        g, e = self.ends(x_t, v, t)
        t = expand(t, x_t)
        return self.alpha_rate(t) * g + self.sigma_rate(t) * e


@dataclass(frozen=True)
class LinearPath(Path):
    """Rectified flow, α_t = 1 − t, σ_t = t (2209.03003)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def alpha_rate(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def from_ratio(self, eta: Tensor) -> Tensor:
        return eta / (1 + eta)

    def move(self, x_t: Tensor, v: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return x_t + expand(s - t, x_t) * v


@dataclass(frozen=True)
class CosinePath(Path):
    """Variance preserving, α_t = cos(πt/2), σ_t = sin(πt/2)."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t * (math.pi / 2))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t * (math.pi / 2))

    def alpha_rate(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * self.sigma(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return math.pi / 2 * self.alpha(t)

    def from_ratio(self, eta: Tensor) -> Tensor:
        return torch.atan(eta) * (2 / math.pi)


PATHS: dict[str, type[Path]] = {"linear": LinearPath, "cosine": CosinePath}
