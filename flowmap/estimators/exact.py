"""The exact gradient, from every one of the V^L joint outcomes."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from flowmap.estimators.base import Estimate, Function, check, evaluate, log_probs
from flowmap.rng import Rng


@dataclass(frozen=True)
class Exact:
    """Σ_D π(D) f(D) (D − π) over all outcomes D. Draws nothing: n and rng are not used, and the value is exact.

    limit: ValueError for more than so many outcomes. chunk: outcomes given to f at once."""

    limit: int = 100_000
    chunk: int = 4096

    name = "exact"
    unbiased = True
    needs_gradient_of_f = False

    def estimate(self, logits: Tensor, f: Function, num_samples: int = 1, rng: Rng | None = None) -> Estimate:
        check(logits, num_samples)
        values, gradient = [], torch.zeros_like(logits)
        for D, probability in outcomes(logits, self.limit, self.chunk):
            weighted = probability * evaluate(f, D)
            values.append(weighted.sum(0))
            gradient += torch.einsum("n...,n...lv->...lv", weighted.detach(), D)
        value = torch.stack(values).sum(0)
        gradient -= log_probs(logits).exp() * value.detach()[..., None, None]
        *_, L, V = logits.shape
        return Estimate(value, gradient, V**L)


def outcomes(logits: Tensor, limit: int, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All D, (m, *batch, L, V) with m ≤ chunk at a time, and their probabilities, (m, *batch)."""
    *batch, L, V = logits.shape
    num = V**L
    if num > limit:
        raise ValueError(f"{V}^{L} = {num} outcomes are more than limit = {limit}; raise it, or draw samples")
    log_pi = log_probs(logits)
    place = V ** torch.arange(L, device=logits.device)
    for index in torch.arange(num, device=logits.device).split(chunk):
        digits = index[:, None] // place % V
        D = F.one_hot(digits, V).to(logits).view(-1, *[1] * len(batch), L, V).expand(-1, *logits.shape)
        yield D, log_pi.where(D > 0, 0).sum((-2, -1)).exp()
