"""What a joint head promises: the law of the next K tokens given the trunk's state, and nothing else.

Decoders, perplexity and validity suites use this contract only. Position 1 of a block is the
trunk's own softmax; a head models positions 2..K given x_1. Shapes: N anchors (positions of the
trunk that a block hangs on), K the block size, V the vocabulary, d the trunk's width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from flowmap.rng import Rng
from flowmap.warp import Warp

if TYPE_CHECKING:
    from flowmap.draws import Estimate
    from mtp.heads.past import Past

MIN_BLOCK, MAX_BLOCK = 2, 16


@dataclass(frozen=True)
class BlockContext:
    """What a head may look at. hidden: (N, d) trunk states after the last norm; embedding: (V, e)
    and unembedding: (V, d), the trunk's tables; bias: (V,) of the unembedding, if it has one. past: the text before the anchors, for heads
    that read it."""

    hidden: Tensor
    embedding: Tensor
    unembedding: Tensor
    bias: Tensor | None = None
    past: "Past | None" = None

    def part(self, rows: Tensor | slice) -> "BlockContext":
        """Of these anchors alone."""
        return replace(self, hidden=self.hidden[rows], past=self.past and self.past.part(rows))

    def first_logits(self) -> Tensor:
        """(N, V): the trunk's own next-token logits, position 1 of every block."""
        return nn.functional.linear(self.hidden, self.unembedding, self.bias)


@dataclass(frozen=True)
class BlockNLL:
    """loss: scalar to differentiate, Σ weights · nll over the positions the head models. sum, count:
    (K,) nats and targets per position, detached; position 1, the trunk's, has count 0."""

    loss: Tensor
    sum: Tensor
    count: Tensor


@dataclass(frozen=True)
class Draft:
    """A drawn block. tokens: (N, K); log_q: (N, K), under the law drawn from, temperature and
    top-p included (verification needs that one); logits: K tensors (N, V), before the warp."""

    tokens: Tensor
    log_q: Tensor
    logits: Sequence[Tensor]
    warp: Warp

    def conditional(self, k: int) -> Tensor:
        """(N, V): log q(· | x_<k) after the warp at position k, counted from 0."""
        return self.warp.log_prob(self.logits[k])


class JointHead(nn.Module):
    """The law q(x_1..x_K | h). A head is built from sizes alone and owns no trunk weights."""

    name: ClassVar[str]
    exact: ClassVar[bool] = True
    """log_prob is known; False: the law is a mean over noise, see estimate_prefixes"""
    needs_past: ClassVar[bool] = False
    """reads `BlockContext.past`, the text before an anchor"""
    learns_past: ClassVar[bool] = False
    """its nll reads `BlockContext.past`, the text around an anchor; nothing else of it does"""
    stops_early: ClassVar[bool] = False
    """sample takes `until`: asked with the draft so far after each position from 2 on, it ends the draft there by True"""

    def __init__(self, hidden_size: int, vocab_size: int, block_size: int) -> None:
        super().__init__()
        if not MIN_BLOCK <= block_size <= MAX_BLOCK:
            raise ValueError(f"block_size {block_size} must lie between {MIN_BLOCK} and {MAX_BLOCK}")
        self.hidden_size, self.vocab_size, self.block_size = hidden_size, vocab_size, block_size

    @classmethod
    def trunk_options(cls, config: Any) -> dict[str, Any]:
        """The family's options that follow the trunk's config where they are not given."""
        return {}

    def nll(
        self,
        ctx: BlockContext,
        targets: Tensor,
        mask: Tensor,
        weights: Tensor | None = None,
        rng: Rng | None = None,
    ) -> BlockNLL:
        """Teacher-forced, chunked. targets, mask: (N, K); weights: (N, K) or (K,), default 1. rng: addressed by
        anchor, for heads whose loss is a mean over noise.

        A masked target contributes nothing and may be any token.
        """
        raise NotImplementedError

    def log_prob(self, ctx: BlockContext, x: Tensor) -> Tensor:
        """x: (N, K') with K' ≤ K → log q(x_k | x_<k) in nats, (N, K'). Differentiable."""
        raise NotImplementedError(f"{self.name}: q is a mean over noise without a closed form; see estimate_log_prob")

    def estimate_prefixes(self, ctx: BlockContext, x: Tensor, rng: Rng, draws: int) -> "Estimate":
        """Of a head that is not exact. x: (N, K') with K' ≤ K → log q(x_1..x_k) for every k, (N, K'), from `draws` of
        the noise for each row; rng: addressed by anchor."""
        raise NotImplementedError(f"{self.name}: log_prob is exact, there is nothing to estimate")

    def estimate_log_prob(self, ctx: BlockContext, x: Tensor, rng: Rng, draws: int) -> "Estimate":
        """The same of x as a whole, (N,)."""
        found = self.estimate_prefixes(ctx, x, rng, draws)
        return replace(found, log_prob=found.log_prob[:, -1], stderr=found.stderr[:, -1])

    def law(self, ctx: BlockContext, x: Tensor) -> Tensor:
        """x: (N, K') → log q(· | x_<k) of positions 2..K', (N, K'−1, V), teacher-forced and differentiable (K' ≥ 2); the last
        column of x is not looked at. All of it at once: give a few anchors at a time."""
        raise NotImplementedError(f"{self.name} gives no conditional laws")

    def ready(self, ctx: BlockContext, x: Tensor) -> BlockContext:
        """ctx with what one pass makes for all its anchors, before `law` is asked of them part by part. x: as in `law`."""
        return ctx

    def base_nll(self, ctx: BlockContext, targets: Tensor, mask: Tensor, weights: Tensor | None = None) -> BlockNLL:
        """As `nll`, of the head with its correction taken away."""
        raise NotImplementedError(f"{self.name} has no base under a correction: head.curriculum is for chains")

    def log_prior(self, ctx: BlockContext, first: Tensor) -> Tensor:
        """first: (N,), x_1 → log π_z(h, x_1) of every component, (N, r)."""
        raise NotImplementedError(f"{self.name} weighs no components: head.balance is for mixtures")

    def sample(
        self,
        ctx: BlockContext,
        warp: Warp,
        rng: Rng | None = None,
        noise: Tensor | None = None,
        block_size: int | None = None,
        first: Tensor | None = None,
    ) -> Draft:
        """Draw a block from rng (addressed by row) or from noise: (N, K) uniforms, or (N, K, V) Gumbels.
        first: (N,) tokens of position 1 where they are known; their log_q is 0."""
        raise NotImplementedError

    def relaxed(
        self,
        ctx: BlockContext,
        choose: Callable[[int, Tensor], Tensor],
        first: Tensor,
        block_size: int | None = None,
    ) -> Tensor:
        """A block of one-hot tokens that carry gradients, (N, K, V). choose: position k ≥ 1 and log q_k (N, V) → the
        token there, (N, V), one-hot or soft, which later positions read. first: (N,), position 1."""
        raise NotImplementedError(f"{self.name} reads no soft tokens: take an objective with a score-function gradient")

    def marginal(self, ctx: BlockContext) -> Tensor:
        """(N, K, V): log q(x_k | h), every other position summed out."""
        raise NotImplementedError(f"{self.name}: marginals sum over all prefixes, or all noise; sample instead")

    def mode(self, ctx: BlockContext) -> Tensor:
        """(N, K): the most probable block."""
        raise NotImplementedError(f"{self.name}: the mode needs a search; use temperature 0 for greedy")

    def size(self, asked: int | None) -> int:
        """Tokens of a block to draw: those asked for, at most the head's own."""
        if asked is not None and not 1 <= asked <= self.block_size:
            raise ValueError(f"block_size {asked} must lie between 1 and the {self.block_size} this head was built for")
        return asked or self.block_size

    def past_of(self, ctx: BlockContext) -> "Past":
        if ctx.past is None or len(ctx.past.row) != len(ctx.hidden):
            raise ValueError(f"{self.name} reads the text before every anchor: give the context its past")
        return ctx.past

    def uniforms(self, ctx: BlockContext, rng: Rng | None, noise: Tensor | None, size: int) -> Tensor:
        if noise is not None:
            return noise
        if rng is None:
            raise ValueError("sample needs rng or noise")
        return rng.uniform("block", len(ctx.hidden), size).to(ctx.hidden.device)


def row_weights(targets: Tensor, mask: Tensor, weights: Tensor | None) -> Tensor:
    """(N, K) of what counts: weights (N, K) or (K,), default 1, and 0 where masked."""
    return mask.float() if weights is None else weights.expand(targets.shape).float() * mask


def block_nll(loss: Tensor, nll: Tensor, mask: Tensor) -> BlockNLL:
    """nll: (N, K−1), of positions 2..K; a masked target's may be anything. mask: (N, K)."""
    counted = mask[:, 1:].bool()
    none = nll.new_zeros(1)
    sums = torch.where(counted, nll.detach(), 0.0).sum(0)
    return BlockNLL(loss, torch.cat([none, sums]), torch.cat([none, counted.sum(0).to(nll.dtype)]))


def first_token(logits: Tensor, warp: Warp, noise: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
    """Position 1 and its log q: drawn, or as it is known, and then certain."""
    if known is None:
        return warp.draw(logits, noise)
    return known, torch.zeros(len(known), device=known.device)
