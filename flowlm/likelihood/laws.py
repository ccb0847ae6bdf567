"""The laws that samplers draw from: noise, some network calls, one last softmax in which tokens are independent.

    P(x) = E_z[ Π_l p(x^l | last state(z)) ]                                                     (math.md §5, sampler NLL)

FewStep: the sampler of `flowlm.writing` itself, a few-step map's jumps by default: what writes is what is scored. Ancestral:
the K steps that the K-step bound charges for, z_k = z_{k−1} + (S_k − S_{k−1}) ĉ(z_{k−1}/√S_{k−1}) + √(S_k − S_{k−1}) ξ, whose
network sees fresh noise at S = 0. Both are normalised whatever the network is.
"""

from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from flowlm.draft import Draft
from flowlm.likelihood.denoiser import Denoiser, passes
from flowlm.likelihood.terms import time_of
from flowlm.token_map import TokenMap
from flowlm.writing import Refinement
from flowmap.path import expand
from flowmap.rng import Rng


class Law(Protocol):
    @property
    def model(self) -> Denoiser: ...

    @property
    def nfe(self) -> int:
        """Network calls of a draw."""
        ...

    def last(self, z: Tensor, rng: Rng, context: Any = None) -> Tensor:
        """Noise (B, N, d) → the last logits, (B, N, V)."""
        ...


@dataclass(frozen=True)
class FewStep:
    """sampler: of `flowmap.samplers`. times: of its steps, as of `writing.Refinement`; default even."""

    model: Denoiser
    steps: int = 1
    sampler: str = "pushforward"
    times: tuple[float, ...] | None = None

    @property
    def nfe(self) -> int:
        return (self.steps + (self.sampler == "heun") * (self.steps - 1)) * passes(self.model)

    def last(self, z: Tensor, rng: Rng, context: Any = None) -> Tensor:
        return Refinement(self.steps, self.sampler, times=self.times).last_logits(
            Draft(cast(TokenMap, self.model), context, None), z, rng
        )


@dataclass(frozen=True)
class Ancestral:
    """grid: (K + 1,) S from 0. told: as of `k_step`."""

    model: Denoiser
    grid: Tensor
    told: bool = False

    @property
    def nfe(self) -> int:
        return len(self.grid) * passes(self.model)

    @torch.no_grad()
    def last(self, z: Tensor, rng: Rng, context: Any = None) -> Tensor:
        model, x = self.model, z
        path, nu, total = model.path, model.path.noise_scale, torch.zeros_like(z)
        times = time_of(path, self.grid)
        lands = [*times[1:], times.new_zeros(())]
        for k in range(len(self.grid)):
            t = times[k].to(x).expand(len(x))
            if k:
                y = total / float(self.grid[k]) ** 0.5
                x = expand(path.sigma(t), y) * nu * y
            s = lands[k].to(x).expand(len(x)) if self.told else t
            logits = model.logits(x, t, s, context)
            if k < len(self.grid) - 1:
                gain = float(self.grid[k + 1] - self.grid[k])
                fresh = rng.normal(f"ancestral-{k}", *z.shape, dtype=z.dtype).to(z.device)
                total = total + gain * model.codebook.expected(logits) + gain**0.5 * fresh
        return logits
