"""The slice of [0, 1) that belongs to a token, by the inverse CDF: from a token back to the noise that picks it.

inverse_cdf(p, u) = x  ⇔  low ≤ u < low + width,   low = Σ_{v<x} p(v),   width = p(x).   All in fp64.
"""

import torch
from torch import Tensor


def slice_of(probs: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """probs: (..., V), tokens: (...) → low and width, (...)."""
    before = torch.arange(probs.shape[-1], device=probs.device) < tokens[..., None]
    total = probs.sum(-1, dtype=torch.float64)
    low = torch.where(before, probs, 0.0).sum(-1, dtype=torch.float64) / total
    return low, probs.gather(-1, tokens[..., None])[..., 0].double() / total


def within(probs: Tensor, tokens: Tensor, share: Tensor) -> Tensor:
    """The point of each token's slice at `share` of its width, (...). share: (...) in [0, 1)."""
    low, width = slice_of(probs, tokens)
    return low + width * share


def left_over(log_prob: Tensor, noise: Tensor, tokens: Tensor) -> Tensor:
    """What `warp.pick` leaves of its noise: uniform on [0, 1) whatever the token, (...). log_prob: (..., V), normalised.

    Of a uniform its place in the token's slice; of Gumbels their largest sum with log p, which is a standard Gumbel
    independent of where it is found, brought to [0, 1) by its own CDF exp(−exp(−g)).
    """
    if noise.ndim == log_prob.ndim:
        return (-(-(log_prob + noise).amax(-1).double()).exp()).exp()
    low, width = slice_of(log_prob.exp(), tokens)
    return ((noise.double() - low) / width).clamp(0.0, 1 - 2.0**-53)
