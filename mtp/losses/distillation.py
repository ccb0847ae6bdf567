"""A head taught by the trunk's own full law of each position instead of by one token of it.

With p the trunk's law after x_<k and q the head's, both given the text's own tokens, position by position:

    cross-entropy   −Σ_v p log q, the expectation of the plain loss over the trunk's own tokens
    total-variation ½ Σ_v |p − q| = 1 − α, α = Σ_v min(p, q) the chance that a draft of this position stands
    hybrid          λ KL(p‖q) + (1 − λ) TV,  λ = exp(−3α), α held fixed (2602.23881): KL while far, TV when near

Anchors go in chunks, so that no more than CHUNK_LOGITS of either law exist at once; each is formed again backwards.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowmap.attention import as_forwards
from mtp.heads.base import BlockContext, JointHead
from mtp.losses.linear_nll import CHUNK_LOGITS

KINDS = ("cross-entropy", "total-variation", "hybrid")


def divergence(
    head: JointHead, ctx: BlockContext, targets: Tensor, teacher: Tensor, weights: Tensor, kind: str
) -> tuple[Tensor, Tensor]:
    """Σ weights · loss, to differentiate, and α of every position, (N, K−1), detached. targets: (N, K), the text.
    teacher: (N, K−1, d), the trunk's states at x_1..x_{K−1}, where it knows x_<k. weights: (N, K−1), 0 to leave out."""
    ctx = head.ready(ctx, targets)
    size = max(1, CHUNK_LOGITS // (len(ctx.unembedding) * teacher.shape[1]))

    def piece(rows: Tensor, targets: Tensor, teacher: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        log_q = head.law(ctx.part(rows), targets)
        with torch.no_grad():
            log_p = nn.functional.linear(teacher, ctx.unembedding, ctx.bias).float().log_softmax(-1)
        loss, overlap = compare(log_p, log_q, kind)
        return torch.where(weights > 0, loss * weights, 0.0).sum(), overlap

    rows = torch.arange(len(targets), device=targets.device)
    parts: Any = zip(*(x.split(size) for x in (rows, targets, teacher, weights)), strict=True)
    if torch.is_grad_enabled():
        made = [checkpoint(piece, *part, use_reentrant=False, context_fn=as_forwards) for part in parts]
    else:
        made = [piece(*part) for part in parts]
    return torch.stack([loss for loss, _ in made]).sum(), torch.cat([overlap for _, overlap in made])


def compare(log_p: Tensor, log_q: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """(..., V) each → the loss and α, (...). Gradients reach q alone."""
    p, q = log_p.exp(), log_q.exp()
    overlap = torch.minimum(p, q).sum(-1).detach()
    if kind == "cross-entropy":
        return -(p * log_q).sum(-1), overlap
    variation = (p - q).abs().sum(-1) / 2
    if kind == "total-variation":
        return variation, overlap
    if kind == "hybrid":
        share = (-3 * overlap).exp()
        return share * (p * (log_p - log_q)).sum(-1) + (1 - share) * variation, overlap
    raise ValueError(f"distillation {kind!r}: known are {', '.join(KINDS)}")
