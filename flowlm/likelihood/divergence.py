"""The velocity of the flow in y = x/(σν), r = √S, and its divergence by the *full* Jacobian.

    dy/dr = ĉ_θ(y, r) = Cᵀp_θ,        tr ∂ĉ/∂y: exactly, one backward pass a coordinate,
                                      or by Hutchinson's E[vᵀ (∂ĉ/∂y) v], v of random signs          (1810.01367)

A network that detaches part of what it knows of x_t (a first pass of self-conditioning under no_grad) has only part of its
Jacobian here, and the likelihood made of it falls below the entropy: `refuse_detached` compares with finite differences.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowlm.likelihood.denoiser import Denoiser
from flowlm.likelihood.terms import time_of
from flowmap.attention import differentiable
from flowmap.path import expand
from flowmap.rng import Rng


@dataclass(frozen=True)
class Field:
    """ĉ of one batch. free: (B, N) bool, where tokens are unknown; the others do not move."""

    model: Denoiser
    context: Any
    free: Tensor

    def __call__(self, y: Tensor, r: float) -> Tensor:
        """y: (B, N, d) → alike."""
        path = self.model.path
        t = time_of(path, torch.full((len(y),), r, dtype=torch.float64).square()).to(y)
        logits = self.model.logits(expand(path.sigma(t), y) * path.noise_scale * y, t, t, self.context)
        return self.model.codebook.expected(logits).to(y) * self.free[..., None]

    def with_divergence(self, y: Tensor, r: float, probes: Tensor | None) -> tuple[Tensor, Tensor]:
        """(ĉ, divergence), (B, N, d) and (P, B): P = 1 of the exact trace. probes: (P, B, N, d) of ±1; None: exact."""
        with torch.enable_grad(), differentiable():
            y = y.detach().requires_grad_()
            out = self(y, r)
            if not out.requires_grad:
                return out.detach(), y.new_zeros(1 if probes is None else len(probes), len(y), dtype=torch.float64)
            if probes is None:
                rows = []
                for n in torch.nonzero(self.free.any(0))[:, 0].tolist():
                    for d in range(y.shape[-1]):
                        (row,) = torch.autograd.grad(out[:, n, d].sum(), y, retain_graph=True)
                        rows.append((row[:, n, d] * self.free[:, n]).double())
                found = torch.stack(rows).sum(0)[None] if rows else y.new_zeros(1, len(y), dtype=torch.float64)
            else:
                products = [torch.autograd.grad((out * v).sum(), y, retain_graph=True)[0] * v for v in probes]
                found = torch.stack([p.double().flatten(1).sum(1) for p in products])
        return out.detach(), found


def signs(rng: Rng, name: str, count: int, free: Tensor, like: Tensor) -> Tensor:
    """(count, B, N, d): ±1 where free, 0 elsewhere."""
    drawn = [rng.uniform(f"{name}-{i}", *like.shape).to(like) for i in range(count)]
    return (2.0 * (torch.stack(drawn) >= 0.5) - 1).to(like) * free[..., None]


def refuse_detached(field: Field, y: Tensor, r: float, rng: Rng, tolerance: float = 0.1) -> None:
    """ValueError where vᵀJv is not what the outputs' difference along v says, over all rows and eight directions."""
    step = 1e-4 if y.dtype == torch.float64 else 1e-2
    probes = signs(rng, "detached", 8, field.free, y)
    _, told = field.with_divergence(y, r, probes)
    with torch.no_grad():
        ahead, behind = (torch.stack([field(y + sign * step * v, r) for v in probes]) for sign in (1, -1))
        seen = ((ahead - behind) * probes / (2 * step)).double().flatten(2).sum(2)
    scale = float(seen.square().mean().sqrt())
    if math.sqrt(float((seen - told).square().mean())) > tolerance * scale + 1e-3:
        raise ValueError(
            "the gradient of the network's output misses part of how it depends on x_t: take detach and no_grad out of "
            "logits (self-conditioning is differentiated through), or the ODE likelihood falls below the truth"
        )
