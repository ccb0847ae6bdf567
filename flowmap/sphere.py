"""A path along great circles, for codes of one length (the sphere of 2605.11125; flows on manifolds: 2302.03660).

    x_t = slerp(c, e, t) = [sin((1−t)Ω)·c + sin(tΩ)·e]/sin Ω,   cos Ω = ⟨c, e⟩/R²,   e uniform on the sphere, R = ‖c‖ = ν√d

Given c, x_t moves away from it along one circle at the constant rate Ω, and is φ = tΩ from it: dx/dt = −Log_x(c)/t, where
Log_x(c) = φ/sin φ·(c − cos φ·x) is the tangent at x that leads to c, of length Rφ. The flow of all tokens is the mean of
that over the posterior, so that with p the network's law

    m = Σ_v p_v Log_x(c_v),   g = Exp_x(m) = cos θ·x + sin θ·R·m/‖m‖ (θ = ‖m‖/R),   dx/dt = −m/t
    X_{t→s}(x) = Exp_x((1 − s/t)·m) = slerp(x, g, 1 − s/t)

x itself at s = t, g at s = 0, always on the sphere; exact and one semigroup where p is sure of one token, and to first
order in t − s where it is not. m is no multiple of the tangent of Cᵀp: φ/sin φ weighs tokens by how far they are.

The matched filter: the ring at φ around c has area ∝ sin^{d−2} φ and Ω = φ/t the density ∝ sin^{d−2} Ω, hence

    log p(x_t | c) = (d−2)·log[sin(φ/t)/sin φ] + const,   −∞ where φ > πt

though a sampler's state may lie beyond πt of every code: log sin is continued by its tangent, so that the nearest is read.

There is no α, σ or signal-to-noise ratio here: the jump is what samplers may use, and cross-entropy what trains.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowmap.codebook import OneHot, in_full
from flowmap.path import PATHS, Path, expand
from flowmap.rng import Rng

NEARLY = 1e-6
"""Cosines are kept so far from −1, where the way to the other end has no direction."""

EDGE = 1e-2
"""So far from π log sin goes over into its tangent."""


@dataclass(frozen=True)
class SlerpPath(Path):
    """Radii are those of the states: codes of length ν√d, as `Embedding(norm=√d)` has them."""

    def alpha(self, t: Tensor) -> Tensor:
        raise ValueError(
            "the slerp path has no signal-to-noise ratio: train it by cross-entropy, sample it by ddim, pushforward or restart"
        )

    def sigma(self, t: Tensor) -> Tensor:
        return self.alpha(t)

    def from_ratio(self, eta: Tensor) -> Tensor:
        return self.alpha(eta)

    def draw_noise(self, rng: Rng, name: str, like: Tensor) -> Tensor:
        """e, uniform on the sphere of radius ν√d."""
        eps = rng.normal(name, *like.shape, dtype=like.dtype).to(like.device)
        return self.noise_scale * math.sqrt(like.shape[-1]) * torch.nn.functional.normalize(eps, dim=-1)

    def noise(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return slerp(x_0, eps, expand(t, x_0))

    def secant(self, x_t: Tensor, g: Tensor, t: Tensor) -> Tensor:
        return self.alpha(t)

    def jump(self, x_t: Tensor, g: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """slerp(x_t, g, 1 − s/t). Needs t > 0."""
        return slerp(x_t, g, expand(1 - s / t, x_t))

    def expected(self, codebook: Any, logits: Tensor, x_t: Tensor) -> Tensor:
        """g = Exp_x(m)."""
        weight, cosine = in_full(logits).softmax(-1), self._cosine(codebook, x_t)
        angle = cosine.acos()
        weight = weight * torch.where(angle > 1e-3, angle / angle.sin().clamp_min(1e-9), 1.0)
        with torch.autocast(x_t.device.type, enabled=False):
            m = weight @ codebook.codes() - (weight * cosine).sum(-1, keepdim=True) * x_t
        radius = x_t.norm(dim=-1, keepdim=True)
        length = m.norm(dim=-1, keepdim=True)
        theta = (length / radius).clamp_max(math.pi)
        return theta.cos() * x_t + theta.sin() * radius * m / length.clamp_min(1e-30)

    def prior_logits(self, codebook: Any, x_t: Tensor, t: Tensor) -> Tensor:
        angle = self._cosine(codebook, x_t).acos().clamp_min(1e-6)
        opening = angle / expand(t, x_t)
        inside = opening.clamp_max(math.pi - EDGE)
        return (x_t.shape[-1] - 2) * ((inside.sin() / angle.sin()).log() - (opening - inside) / EDGE)

    def input_scale(self, t: Tensor, data_scale: float) -> Tensor:
        """States have one length at all times."""
        return torch.full_like(t, 1 / self.noise_scale)

    def _cosine(self, codebook: Any, x_t: Tensor) -> Tensor:
        """Of the angles to all codes, (B, N, V)."""
        if isinstance(codebook, OneHot):
            raise ValueError(
                "one-hot codes span no sphere of the noise's radius: set the codebook sphere, bits or table"
            )
        unit = torch.nn.functional.normalize(in_full(x_t), dim=-1)
        with torch.autocast(x_t.device.type, enabled=False):
            cosine = unit @ torch.nn.functional.normalize(codebook.codes(), dim=-1).T.to(unit)
        return cosine.clamp(-1 + NEARLY, 1)


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """The point that lies this share of the way from a to b, on the sphere of a. Vectors along the last axis."""
    radius = a.norm(dim=-1, keepdim=True)
    unit, towards = a / radius, torch.nn.functional.normalize(b, dim=-1)
    cosine = (unit * towards).sum(-1, keepdim=True)
    across = towards - cosine * unit
    sine = (across.square().sum(-1, keepdim=True) + 1e-30).sqrt()
    angle = share * torch.atan2(sine, cosine)
    return radius * (angle.cos() * unit + angle.sin() * across / sine)


TOKEN_PATHS: dict[str, type[Path]] = {**PATHS, "slerp": SlerpPath}
"""Those of images, and that of codes of one length."""
