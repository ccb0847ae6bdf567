"""Cross-entropy of trunk and joint head on every position's next K tokens.

    L = Σ_i [ −log p(x_{i+1} | h_i) + w · 1/(K−1) Σ_{k≥2} w_k · −log q(x_{i+k} | h_i, x_{i+1..i+k−1}) ] / count

The first term is the trunk's own; a frozen trunk has none. The head may be scored on a fraction of
the positions: its sum is scaled up, so that the expected gradient stays the same. In the head's place of the plain
loss may stand its distance to the trunk's full law (losses/distillation.py), or an objective on blocks that the head
draws itself (losses/on_policy.py); what is reported is the plain one.
"""

import torch
from torch import Tensor

from flowmap.objectives.base import Loss, Objective
from flowmap.rng import Rng
from mtp.batch import TokenBatch
from mtp.heads.base import BlockContext
from mtp.losses import on_policy as drawn
from mtp.losses.distillation import KINDS, divergence
from mtp.losses.linear_nll import weighted_nll
from mtp.losses.rollout import Anchors, states_after
from mtp.losses.weights import WEIGHTINGS


class JointCrossEntropy(Objective):
    """weighting: of positions, a name of losses/weights.py. distill: one of losses/distillation.py, or None. on_policy:
    one of losses/on_policy.py, or None; samples: blocks it draws at each of anchor_fraction · length anchors a window."""

    coupling = "sample"

    def __init__(
        self,
        frozen_trunk: bool = False,
        head_weight: float = 1.0,
        anchor_fraction: float = 1.0,
        weighting: str = "uniform",
        distill: str | None = None,
        on_policy: str | None = None,
        samples: int = 4,
    ) -> None:
        super().__init__()
        if weighting not in WEIGHTINGS:
            raise ValueError(f"position weights {weighting!r}: known are {', '.join(WEIGHTINGS)}")
        if distill is not None and distill not in KINDS:
            raise ValueError(f"distillation {distill!r}: known are {', '.join(KINDS)}")
        self.frozen_trunk, self.head_weight, self.anchor_fraction = frozen_trunk, head_weight, anchor_fraction
        if on_policy is not None:
            drawn.check(on_policy, samples)
            if distill is not None or weighting != "uniform":
                raise ValueError(
                    f"on-policy objective {on_policy!r}: it goes with no distillation and no position weights"
                )
            if not frozen_trunk:
                raise ValueError(f"on-policy objective {on_policy!r}: the trunk that judges has to be frozen")
        self.weighting, self.distill = weighting, distill
        self.on_policy, self.samples = on_policy, samples

    def forward(self, model, batch: TokenBatch, *, teacher=None, rng: Rng, step: int) -> Loss:
        hidden, cache = batch.hidden, None
        judged = self.training and self.on_policy is not None and drawn.asks_trunk(self.on_policy)
        if hidden is None or judged:  # states that were kept have no keys and values for drawn blocks to look at
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_trunk):
                hidden, cache = model.states(batch.inputs, use_cache=judged)
        targets, mask = batch.blocks(1 if model.head is None else model.head.block_size)
        anchors = mask[..., 0]
        count = anchors.sum().float()
        total, metrics = torch.zeros((), device=hidden.device), {}
        if not self.frozen_trunk or not self.training:
            ctx, target = model.context(hidden[anchors]), targets[anchors]
            first, _ = weighted_nll(
                [ctx.hidden], [ctx.unembedding], target[:, 0], torch.ones(len(target), device=hidden.device), ctx.bias
            )
            metrics["nll_1"] = (first.detach(), count)
            if not self.frozen_trunk:
                total = total + first
        if model.head is not None:
            if batch.starts is not None:
                anchors = anchors & batch.starts
            if self.on_policy is not None and self.training:
                loss, more = self._drawn(model, hidden, cache, targets, mask, anchors, rng)
                scale = self.head_weight / (targets.shape[-1] - 1)
                return Loss(total + loss * scale, count, metrics | more)
            if self.anchor_fraction < 1 and self.training:
                kept = rng.uniform("anchors", *anchors.shape).to(anchors.device) < self.anchor_fraction
                anchors = anchors & kept
            loss, more = self._head(model, hidden, targets, mask, anchors, rng)
            scale = self.head_weight / (targets.shape[-1] - 1)
            total = total + loss * (scale / (self.anchor_fraction if self.training else 1))
            metrics |= more
        return Loss(total, count, metrics)

    def _head(self, model, hidden: Tensor, targets: Tensor, mask: Tensor, anchors: Tensor, rng: Rng):
        """The head's loss over the anchors' blocks, and its metrics. hidden: (batch, length, d)."""
        ctx, target, inside = model.context(hidden[anchors]), targets[anchors], mask[anchors]
        weights = self._weights(model.head, ctx, target, inside)
        metrics = {}
        if self.distill is not None and self.training:
            states, known = _next_states(hidden.detach(), anchors, target.shape[1] - 1)
            counted = inside[:, 1:] & known
            loss, overlap = divergence(model.head, ctx, target, states, weights[:, 1:] * counted, self.distill)
            metrics["acceptance"] = ((overlap * counted).sum(), counted.sum().float())
            return loss, metrics
        block = model.head.nll(ctx, target, inside, weights, _per_anchor(rng, anchors))
        for k in range(1, targets.shape[-1]):
            metrics[f"nll_{k + 1}"] = (block.sum[k], block.count[k])
        metrics["head_nll"] = (block.sum.sum(), block.count.sum())
        return block.loss, metrics

    def _drawn(self, model, hidden: Tensor, cache, targets: Tensor, mask: Tensor, anchors: Tensor, rng: Rng):
        """The objective over blocks drawn at a few anchors of every window, which stand for all of them."""
        kind, (length, size), limit = self.on_policy, targets.shape[1:], model.trunk.config.get_text_config()
        assert kind is not None
        window = getattr(limit, "max_position_embeddings", None) or length + size
        anchors = anchors & (torch.arange(length, device=anchors.device) + size <= window)
        picked = Anchors.pick(anchors, max(1, round(self.anchor_fraction * length)), rng)
        ctx, own = model.context(picked.of(hidden)), picked.rng(rng, length)
        if drawn.asks_trunk(kind):
            policy = drawn.trunk_policy(
                model.head, ctx, kind, self.samples,
                lambda blocks: states_after(model, cache, length, picked.place, blocks), own, _ends(limit),
            )  # fmt: skip
        else:
            policy = drawn.energy_policy(model.head, ctx, kind, self.samples, picked.of(targets), picked.of(mask), own)
        weight = picked.weight.flatten()
        value = (torch.where(weight > 0, weight * policy.value, 0.0).sum(), weight.sum())
        return torch.where(weight > 0, weight * policy.loss, 0.0).sum(), {kind: value}

    @torch.no_grad()
    def _weights(self, head, ctx: BlockContext, target: Tensor, inside: Tensor) -> Tensor:
        """(N, K). Only weights that look at what the head says cost a pass of it."""
        log_q = torch.zeros(target.shape, device=target.device)
        if self.weighting == "d-pace" and self.training:
            log_q = head.log_prob(ctx, target).float()
        return WEIGHTINGS[self.weighting if self.training else "uniform"](log_q, inside)


def _next_states(hidden: Tensor, anchors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The trunk's states at the `count` positions after each anchor, (N, count, d), and which of them the window
    holds, (N, count)."""
    row, place = torch.nonzero(anchors, as_tuple=True)
    index = place[:, None] + 1 + torch.arange(count, device=hidden.device)
    known = index < hidden.shape[1]
    return hidden[row[:, None], index.clamp_max(hidden.shape[1] - 1)], known


def _ends(config) -> tuple[int, ...]:
    """End tokens by a trunk's config, which names none, one or several."""
    end = config.eos_token_id
    return () if end is None else (end,) if isinstance(end, int) else tuple(end)


def _per_anchor(rng: Rng, anchors: Tensor) -> Rng:
    """The randomness of each anchor: position i of sample j is sample j·length + i. anchors: (batch, length)."""
    batch, length = anchors.shape
    samples = torch.arange(batch) if rng.samples is None else rng.samples
    address = samples.to(anchors.device)[:, None] * length + torch.arange(length, device=anchors.device)
    return Rng(rng.seed, address[anchors], rng.batch)
