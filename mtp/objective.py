"""Cross-entropy of trunk and joint head on every position's next K tokens.

    L = Σ_i [ −log p(x_{i+1} | h_i) + w · 1/(K−1) Σ_{k≥2} w_k · −log q(x_{i+k} | h_i, x_{i+1..i+k−1}) ] / count

The first term is the trunk's own; a frozen trunk has none. The head may be scored on a fraction of
the positions: its sum is scaled up, so that the expected gradient stays the same. In the head's place of the plain
loss may stand its distance to the trunk's full law (losses/distillation.py), or an objective on blocks that the head
draws itself (losses/on_policy.py); what is reported is the plain one. The base of a chain may be taught before the chain
(losses/curriculum.py), and the use of a mixture's components evened out (losses/balance.py: c · CV² for every anchor
beside the mean over its positions). A share of the anchors may be taught at prefixes that the head draws itself
(losses/own_samples.py) in place of the text's.
"""

import torch
from torch import Tensor

from flowmap.objectives.base import Loss, Objective
from flowmap.rng import Rng
from mtp.batch import TokenBatch
from mtp.heads.base import BlockContext
from mtp.losses import on_policy as drawn
from mtp.losses.balance import balance
from mtp.losses.curriculum import blend, chain_weight
from mtp.losses.distillation import KINDS, divergence
from mtp.losses.linear_nll import weighted_nll
from mtp.losses.own_samples import choose, draw, own_states
from mtp.losses.rollout import Anchors, states_after
from mtp.losses.weights import WEIGHTINGS


class JointCrossEntropy(Objective):
    """weighting: of positions, a name of losses/weights.py. distill: one of losses/distillation.py, or None.
    curriculum: steps until a chain's correction counts in full, or None. balance: c of the mixture's balance, or None.
    own_samples: share of the anchors taught at the head's own draws, or None; by `distill`, or hybrid.
    on_policy: one of losses/on_policy.py, or None; samples: blocks it draws at each of anchor_fraction · length anchors
    a window."""

    coupling = "sample"

    def __init__(
        self,
        frozen_trunk: bool = False,
        head_weight: float = 1.0,
        anchor_fraction: float = 1.0,
        weighting: str = "uniform",
        distill: str | None = None,
        curriculum: float | None = None,
        balance: float | None = None,
        own_samples: float | None = None,
        on_policy: str | None = None,
        samples: int = 4,
    ) -> None:
        super().__init__()
        if weighting not in WEIGHTINGS:
            raise ValueError(f"position weights {weighting!r}: known are {', '.join(WEIGHTINGS)}")
        if distill is not None and distill not in KINDS:
            raise ValueError(f"distillation {distill!r}: known are {', '.join(KINDS)}")
        if curriculum is not None and (distill is not None or own_samples is not None):
            raise ValueError("a curriculum weighs likelihoods of the text: leave out distillation and own samples")
        self.frozen_trunk, self.head_weight, self.anchor_fraction = frozen_trunk, head_weight, anchor_fraction
        if on_policy is not None and (own_samples is not None or curriculum is not None or balance is not None):
            raise ValueError("an on-policy objective stands alone: leave out own samples, curriculum and balance")
        if on_policy is not None:
            drawn.check(on_policy, samples)
            if distill is not None or weighting != "uniform":
                raise ValueError(
                    f"on-policy objective {on_policy!r}: it goes with no distillation and no position weights"
                )
            if not frozen_trunk:
                raise ValueError(f"on-policy objective {on_policy!r}: the trunk that judges has to be frozen")
        self.weighting, self.distill = weighting, distill
        self.curriculum, self.balance, self.own_samples = curriculum, balance, own_samples
        self.on_policy, self.samples = on_policy, samples

    def forward(self, model, batch: TokenBatch, *, teacher=None, rng: Rng, step: int) -> Loss:
        hidden, cache = batch.hidden, None
        draws = self.own_samples is not None and self.training and model.head is not None
        judged = self.on_policy is not None and self.training and drawn.asks_trunk(self.on_policy)
        if hidden is None or draws or judged:  # cached states have no keys and values for drawn blocks to look at
            learns = hidden is None and not self.frozen_trunk
            with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
                read, cache = model.states(batch.inputs, use_cache=draws or judged)
            hidden = read if hidden is None else hidden
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
            own = (
                choose(anchors, self.own_samples or 0.0, targets.shape[-1], rng) if draws else torch.zeros_like(anchors)
            )
            losses = [self._head(model, hidden, batch.tokens, targets, mask, anchors & ~own, rng, step)]
            if self.balance is not None:
                losses.append(self._balance(model, hidden, targets, anchors))
            if draws:
                losses.append(self._own(model, cache, hidden, batch.tokens, targets, mask, own, rng))
            scale = self.head_weight / (targets.shape[-1] - 1)
            for loss, more in losses:
                total = total + loss * (scale / (self.anchor_fraction if self.training else 1))
                metrics |= more
        return Loss(total, count, metrics)

    def _head(
        self, model, hidden: Tensor, tokens: Tensor, targets: Tensor, mask: Tensor, anchors: Tensor, rng: Rng, step: int
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """The head's loss over the anchors' blocks, and its metrics. hidden: (batch, length, d)."""
        ctx, target, inside = model.anchored(hidden, tokens, anchors), targets[anchors], mask[anchors]
        weights = self._weights(model.head, ctx, target, inside)
        metrics = {}
        if self.distill is not None and self.training:
            states, known = _next_states(hidden.detach(), anchors, target.shape[1] - 1)
            counted = inside[:, 1:] & known
            loss, overlap = divergence(model.head, ctx, target, states, weights[:, 1:] * counted, self.distill)
            metrics["acceptance"] = ((overlap * counted).sum(), counted.sum().float())
            return loss, metrics
        block = model.head.nll(ctx, target, inside, weights, _per_anchor(rng, anchors))
        share = chain_weight(step, self.curriculum) if self.curriculum is not None and self.training else 1.0
        if self.curriculum is not None and (share < 1 or not self.training):
            base = model.head.base_nll(ctx, target, inside, weights)
            metrics["base_nll"] = (base.sum.sum(), base.count.sum())
            block = blend(base, block, share)
        for k in range(1, targets.shape[-1]):
            metrics[f"nll_{k + 1}"] = (block.sum[k], block.count[k])
        metrics["head_nll"] = (block.sum.sum(), block.count.sum())
        return block.loss, metrics

    def _balance(self, model, hidden: Tensor, targets: Tensor, anchors: Tensor):
        """For every anchor, beside the mean over its positions, by whose number the head's loss is divided."""
        prior = model.head.log_prior(model.context(hidden[anchors]), targets[anchors][:, 0])
        used = balance(prior, torch.nonzero(anchors)[:, 0], len(anchors))
        loss = (self.balance or 0.0) * (targets.shape[-1] - 1) * used.loss
        return loss, {"usage_entropy": (used.entropy, anchors.sum().float())}

    def _own(
        self, model, cache, hidden: Tensor, text: Tensor, targets: Tensor, mask: Tensor, anchors: Tensor, rng: Rng
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """The distance from the trunk's law at what the head draws behind these anchors."""
        if not anchors.any():  # the metric all the same: processes add theirs up by name
            none = torch.zeros((), device=hidden.device)
            return none, {"own_acceptance": (none, none)}
        ctx = model.anchored(hidden, text, anchors, own_block=False)
        inside, end = mask[anchors], model.config.eos_token_id
        ends = torch.as_tensor([] if end is None else end, device=hidden.device).reshape(-1)
        tokens, open_ = draw(model.head, ctx, targets[anchors][:, 0], ends, _per_anchor(rng, anchors))
        states = own_states(model, cache, anchors, tokens[:, :-1])
        counted = inside[:, 1:] & open_
        weights = self._weights(model.head, ctx, tokens, inside)[:, 1:] * counted
        loss, overlap = divergence(model.head, ctx, tokens, states, weights, self.distill or "hybrid")
        return loss, {"own_acceptance": ((overlap * counted).sum(), counted.sum().float())}

    def _drawn(self, model, hidden: Tensor, cache, targets: Tensor, mask: Tensor, anchors: Tensor, rng: Rng):
        """The objective over blocks drawn at a few anchors of every window, which stand for all of them."""
        if model.head.needs_past:
            raise NotImplementedError(f"{model.head.name}: on-policy objectives draw from heads that read one state")
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
