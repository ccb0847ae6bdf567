"""Cross-entropy of trunk and joint head on every position's next K tokens.

    L = Σ_i [ −log p(x_{i+1} | h_i) + w · 1/(K−1) Σ_{k≥2} −log q(x_{i+k} | h_i, x_{i+1..i+k−1}) ] / count

The first term is the trunk's own; a frozen trunk has none. The head may be scored on a fraction of
the positions: its sum is scaled up, so that the expected gradient stays the same.
"""

import torch
from torch import Tensor

from flowmap.objectives.base import Loss, Objective
from flowmap.rng import Rng
from mtp.batch import TokenBatch
from mtp.losses.linear_nll import weighted_nll


class JointCrossEntropy(Objective):
    coupling = "sample"

    def __init__(self, frozen_trunk: bool = False, head_weight: float = 1.0, anchor_fraction: float = 1.0) -> None:
        super().__init__()
        self.frozen_trunk, self.head_weight, self.anchor_fraction = frozen_trunk, head_weight, anchor_fraction

    def forward(self, model, batch: TokenBatch, *, teacher=None, rng: Rng, step: int) -> Loss:
        hidden = batch.hidden
        if hidden is None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_trunk):
                hidden, _ = model.states(batch.inputs)
        targets, mask = batch.blocks(1 if model.head is None else model.head.block_size)
        anchors = mask[..., 0]
        count = anchors.sum().float()
        total, metrics = torch.zeros((), device=hidden.device), {}
        if not self.frozen_trunk or not self.training:
            ctx, target, _ = _select(model, hidden, targets, mask, anchors)
            first, _ = weighted_nll(
                [ctx.hidden], [ctx.unembedding], target[:, 0], torch.ones(len(target), device=hidden.device), ctx.bias
            )
            metrics["nll_1"] = (first.detach(), count)
            if not self.frozen_trunk:
                total = total + first
        if model.head is not None:
            if batch.starts is not None:
                anchors = anchors & batch.starts
            if self.anchor_fraction < 1 and self.training:
                kept = rng.uniform("anchors", *anchors.shape).to(anchors.device) < self.anchor_fraction
                anchors = anchors & kept
            ctx, target, inside = _select(model, hidden, targets, mask, anchors)
            block = model.head.nll(ctx, target, inside)
            scale = self.head_weight / (targets.shape[-1] - 1)
            total = total + block.loss * (scale / (self.anchor_fraction if self.training else 1))
            for k in range(1, targets.shape[-1]):
                metrics[f"nll_{k + 1}"] = (block.sum[k], block.count[k])
            metrics["head_nll"] = (block.sum.sum(), block.count.sum())
        return Loss(total, count, metrics)


def _select(model, hidden: Tensor, targets: Tensor, mask: Tensor, anchors: Tensor):
    """The chosen positions as rows: a head's context, targets (N, K) and mask (N, K)."""
    return model.context(hidden[anchors]), targets[anchors], mask[anchors]
