"""The variational bound of a flow language model in continuous time, one time a sample (2107.00630, 2305.18619).

    −log P(x) ≤ ½S(t_max)‖c_x‖² + E Σ_l −log p(x^l | x_{t_min}) + ½∫ E‖c_x − ĉ(x_S)‖² dS,   S = α²/(σ²ν²), ĉ = Cᵀp

the integral from S(t_max) to S(t_min) (math.md §5). The first term is the KL of the noisiest state to the prior
N(0, ν²σ²I): zero at t_max = 1, and without it the rest is no bound below. Holds for any network; tight at the posterior.
Where blocks of a sample that do not see each other's noise have times of their own, it is the sum of
their bounds. Codes learn through all three terms. sum/count is nats a token: times N, a bound on −log P of a sequence.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from flowmap.objectives.base import Loss, Objective
from flowmap.objectives.tokens.base import TokenStates, cross_entropy
from flowmap.path import Path, expand
from flowmap.rng import Rng


class VariationalBound(Objective):
    """law: of the one time a sample. "log-snr": uniform in λ = log S, even over scales. "logistic": λ ~ center +
    scale·logistic, cut to the range, for less variance where most of the integral is known to be; center 0 and scale 2
    are uniform in t on the linear path with ν = 1. It allows t_max = 1."""

    def __init__(
        self,
        t_min: float = 0.02,
        t_max: float = 0.99,
        law: Literal["log-snr", "logistic"] = "log-snr",
        center: float = 0.0,
        scale: float = 2.0,
    ) -> None:
        super().__init__()
        if not 0 < t_min < t_max <= 1 or (law == "log-snr" and t_max == 1):
            raise ValueError(f"times from {t_min} to {t_max} by {law!r}: 0 < t_min < t_max ≤ 1, < 1 for log-snr")
        if scale < 1:
            raise ValueError(f"scale {scale} below 1: the weight of the noisiest times would have no bound")
        self.t_min, self.t_max, self.law, self.center, self.scale = t_min, t_max, law, center, scale

    def forward(self, model, batch: TokenStates, *, teacher=None, rng: Rng, step: int) -> Loss:
        x_0 = model.codebook.encode(batch.tokens)
        told = x_0 if batch.scored is None else x_0 * batch.scored[..., None]
        prior = self.log_snr(model.path, self.t_max).exp().to(x_0) / 2 * told.square().flatten(1).sum(1)

        t, weight = (batch.at_tokens(part).to(x_0) for part in self.draw(model.path, *batch.draws(rng)))
        x_t = model.path.noise(x_0, model.path.draw_noise(rng, "eps", x_0), t)
        g = model.codebook.expected(model.logits(x_t, t, t, batch.context))
        drift = (expand(weight, x_0) * (x_0 - g).square()).flatten(1).sum(1)

        least = torch.full_like(t, self.t_min)
        x_least = model.path.noise(x_0, model.path.draw_noise(rng, "eps_min", x_0), least)
        reading = cross_entropy(model.logits(x_least, least, least, batch.context), batch.tokens)

        count = batch.count
        parts = {"prior": prior, "drift": drift, "reading": reading}
        metrics = {name: (part.sum().detach(), count) for name, part in parts.items()}
        return Loss((prior + drift + reading).sum(), count, metrics)

    def draw(self, path: Path, rng: Rng, count: int) -> tuple[Tensor, Tensor]:
        """(t, ½·|dS/du|), (count,), where t = t(u), u ~ U(0, 1): the weight that makes the estimate unbiased. float64."""
        u = rng.uniform("t", count, dtype=torch.float64)
        first, last = (self.log_snr(path, end) for end in (self.t_max, self.t_min))
        if self.law == "log-snr":
            lam = first + (last - first) * u
            dlam_du = last - first
        else:
            low, high = (torch.sigmoid((end - self.center) / self.scale) for end in (first, last))
            f = (low + (high - low) * u).clamp(1e-12, 1 - 1e-12)
            lam = self.center + self.scale * torch.logit(f)
            dlam_du = (high - low) * self.scale / (f * (1 - f))
        t = path.from_ratio((-lam / 2).exp() / path.noise_scale)  # σ/α
        return t, lam.exp() * dlam_du / 2

    @staticmethod
    def log_snr(path: Path, t: float) -> Tensor:
        """λ = log(α²/(σ²ν²))."""
        return path.log_snr(torch.tensor(t, dtype=torch.float64)) - 2 * math.log(path.noise_scale)
