"""How much each position of a block counts in the loss, (N, K) from what the head says of the targets. Detached.

    uniform   1
    decay     γ^{k−2}: early positions are reached more often when drafts are verified (2401.10774 uses 0.8)
    d-pace    Σ_{m≥k} Π_{j≤m} c_j,  c_j = (1 − a) q(x_j | x_<j) + a: the tokens that stand or fall with this one,
              by smoothed confidences (2605.18810, a = 0.5)

A row's weights depend on that row alone, so that neither micro-batches nor ranks change what is trained.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Weighting = Callable[[Tensor, Tensor], Tensor]
"""log q (N, K) of the targets and their mask (N, K) → weights (N, K). Position 1 is the trunk's, and is left out."""


def uniform(log_q: Tensor, mask: Tensor) -> Tensor:
    return torch.ones_like(log_q)


def decay(log_q: Tensor, mask: Tensor, rate: float = 0.8) -> Tensor:
    powers = rate ** (torch.arange(log_q.shape[1], device=log_q.device, dtype=log_q.dtype) - 1)
    return (powers / powers[1:].mean()).expand_as(log_q)


def d_pace(log_q: Tensor, mask: Tensor, smoothing: float = 0.5) -> Tensor:
    confidence = ((1 - smoothing) * log_q.exp() + smoothing) * mask
    confidence[:, 0] = 1.0
    reach = confidence.cumprod(1)
    return reach.flip(1).cumsum(1).flip(1)


WEIGHTINGS: dict[str, Weighting] = {"uniform": uniform, "decay": decay, "d-pace": d_pace}
