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
from mtp.decoding.rows import check_window
from mtp.heads.base import BlockContext
from mtp.losses import on_policy as drawn
from mtp.losses.balance import balance
from mtp.losses.curriculum import blend, chain_weight
from mtp.losses.distillation import KINDS, divergence
from mtp.losses.linear_nll import weighted_nll
from mtp.losses.own_samples import choose, draw, own_states
from mtp.losses.rollout import Anchors, states_after
from mtp.losses.weights import WEIGHTINGS
from mtp.losses.window import Window

Metrics = dict[str, tuple[Tensor, Tensor]]
"""By name, sum and count."""


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
        window = self._read(model, batch, rng)
        count = window.anchors.sum().float()
        total, metrics = torch.zeros((), device=window.hidden.device), {}
        if not self.frozen_trunk or not self.training:
            first = _trunk_loss(window)
            metrics["nll_1"] = (first.detach(), count)
            if not self.frozen_trunk:
                total = total + first
        if model.head is not None:
            if batch.starts is not None:
                window = window.among(window.anchors & batch.starts)
            losses, share = self._of_head(window, step)
            scale = self.head_weight / window.modelled / share
            for loss, more in losses:
                total = total + loss * scale
                metrics |= more
        return Loss(total, count, metrics)

    def _read(self, model, batch: TokenBatch, rng: Rng) -> Window:
        """Every position that has a next token is an anchor."""
        hidden, cache = batch.hidden, None
        judged = self.training and self.on_policy is not None and drawn.asks_trunk(self.on_policy)
        asks = judged or self._draws(model)
        if hidden is None or asks:  # cached states have no keys and values for drawn blocks to look at
            learns = hidden is None and not self.frozen_trunk
            with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
                read, cache = model.states(batch.inputs, use_cache=asks)
            hidden = read if hidden is None else hidden
        targets, mask = batch.blocks(1 if model.head is None else model.head.block_size)
        return Window(model, hidden, cache, batch.tokens, targets, mask, mask[..., 0], rng)

    def _draws(self, model) -> bool:
        return self.own_samples is not None and self.training and model.head is not None

    def _of_head(self, window: Window, step: int) -> tuple[list[tuple[Tensor, Metrics]], float]:
        """The head's losses over the anchors, and the share of all that they are sums over."""
        if self.on_policy is not None and self.training:
            return [self._drawn(window)], 1.0
        share = self.anchor_fraction if self.training else 1.0
        if share < 1:
            kept = window.rng.uniform("anchors", *window.anchors.shape).to(window.anchors.device) < share
            window = window.among(window.anchors & kept)
        own = torch.zeros_like(window.anchors)
        if self._draws(window.model):
            own = choose(window.anchors, self.own_samples or 0.0, window.block_size, window.rng)
        losses = [self._text(window.among(window.anchors & ~own), step)]
        if self.balance is not None:
            losses.append(self._balance(window))
        if self._draws(window.model):
            losses.append(self._own(window.among(own)))
        return losses, share

    def _text(self, window: Window, step: int) -> tuple[Tensor, Metrics]:
        """At the text's own blocks: likelihood, or the distance to the trunk's law."""
        head, ctx, (target, inside) = window.model.head, window.context(), window.blocks()
        weights = self._weights(head, ctx, target, inside)
        if self.distill is not None and self.training:
            states, known = window.next_states()
            counted = inside[:, 1:] & known
            loss, overlap = divergence(head, ctx, target, states, weights[:, 1:] * counted, self.distill)
            return loss, {"acceptance": ((overlap * counted).sum(), counted.sum().float())}
        metrics: Metrics = {}
        block = head.nll(ctx, target, inside, weights, window.anchor_rng())
        share = chain_weight(step, self.curriculum) if self.curriculum is not None and self.training else 1.0
        if self.curriculum is not None and (share < 1 or not self.training):
            base = head.base_nll(ctx, target, inside, weights)
            metrics["base_nll"] = (base.sum.sum(), base.count.sum())
            block = blend(base, block, share)
        for k in range(1, window.block_size):
            metrics[f"nll_{k + 1}"] = (block.sum[k], block.count[k])
        return block.loss, metrics | {"head_nll": (block.sum.sum(), block.count.sum())}

    def _balance(self, window: Window) -> tuple[Tensor, Metrics]:
        """For every anchor, beside the mean over its positions, by whose number the head's loss is divided. Of held-out
        text only how the components are used."""
        prior = window.model.head.log_prior(window.context(), window.blocks()[0][:, 0])
        used = balance(prior, torch.nonzero(window.anchors)[:, 0], len(window.anchors))
        weight = self.balance if self.training else None
        return (weight or 0.0) * window.modelled * used.loss, {
            "usage_entropy": (used.entropy, window.anchors.sum().float())
        }

    def _own(self, window: Window) -> tuple[Tensor, Metrics]:
        """The distance from the trunk's law at what the head draws behind these anchors."""
        if not window.anchors.any():  # the metric all the same: processes add theirs up by name
            none = torch.zeros((), device=window.hidden.device)
            return none, {"own_acceptance": (none, none)}
        head, ctx, (target, inside) = window.model.head, window.context(own_block=False), window.blocks()
        ends = torch.tensor(window.ends(), device=target.device, dtype=target.dtype)
        tokens, open_ = draw(head, ctx, target[:, 0], ends, window.anchor_rng())
        states = own_states(window.model, window.cache, window.anchors, tokens[:, :-1])
        counted = inside[:, 1:] & open_
        weights = self._weights(head, ctx, tokens, inside)[:, 1:] * counted
        loss, overlap = divergence(head, ctx, tokens, states, weights, self.distill or "hybrid")
        return loss, {"own_acceptance": ((overlap * counted).sum(), counted.sum().float())}

    def _drawn(self, window: Window) -> tuple[Tensor, Metrics]:
        """The objective over blocks drawn at a few anchors of every window, which stand for all of them."""
        model, head, kind, length = window.model, window.model.head, self.on_policy, window.length
        assert kind is not None
        if head.needs_past:
            raise NotImplementedError(f"{head.name}: on-policy objectives draw from heads that read one state")
        limit = getattr(model.trunk.config.get_text_config(), "max_position_embeddings", None)
        fits = torch.arange(length, device=window.anchors.device) + window.block_size <= (limit or torch.inf)
        picked = Anchors.pick(window.anchors & fits, max(1, round(self.anchor_fraction * length)), window.rng)
        ctx, rng = model.context(picked.of(window.hidden)), picked.rng(window.rng, length)
        if drawn.asks_trunk(kind):
            check_window(model.trunk.config, length + window.modelled)

            def read(blocks: Tensor) -> Tensor:
                return states_after(model, window.cache, length, picked.place, blocks)

            policy = drawn.trunk_policy(head, ctx, kind, self.samples, read, rng, window.ends())
        else:
            targets, mask = picked.of(window.targets), picked.of(window.mask)
            policy = drawn.energy_policy(head, ctx, kind, self.samples, targets, mask, rng)
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


def _trunk_loss(window: Window) -> Tensor:
    """The trunk's own at every anchor."""
    ctx, target = window.model.context(window.hidden[window.anchors]), window.targets[window.anchors][:, 0]
    ones = torch.ones(len(target), device=target.device)
    return weighted_nll([ctx.hidden], [ctx.unembedding], target, ones, ctx.bias)[0]
