"""Likelihood of text, summed for each document, so that the data error can be bootstrapped. Exact, or for heads whose
law is a mean over noise a bound from DRAWS of it at each anchor, whose own error is known from the draws.

Three scores of the same store from one pass: the trunk's own chain; the block law −log q(x_{i+1..i+K} | h_i) at every
position i, beside the trunk's chain on the very same targets (their difference is the
misspecification gap); and the direct law, the text cut into consecutive blocks and scored by the head
alone, which is the likelihood of what verification-free decoding writes.
Where a head is not exact its law is a mean over DRAWS of its noise, and what is summed a bound, in expectation.
Text is cut into windows; a token's context is its window before it, at most.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from flowmap.rng import Rng
from mtp.batch import TokenBatch
from mtp.heads.base import BlockContext
from mtp.losses.linear_nll import row_nll
from training.data.store import TokenStore
from training.data.windows import TextWindows

DRAWS = 16


@dataclass(frozen=True)
class BlockLikelihood:
    """head, trunk: (documents, K) summed nats; count: (documents,) blocks scored. variance: (documents,) of the head's summed
    nats of whole blocks over its draws of noise; None of an exact head."""

    head: np.ndarray
    trunk: np.ndarray
    count: np.ndarray
    variance: np.ndarray | None = None

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """(K,) nats per token of head and trunk, over all blocks."""
        return self.head.sum(0) / self.count.sum(), self.trunk.sum(0) / self.count.sum()

    @property
    def monte_carlo(self) -> float | None:
        """Of the mean nats a token, given the text."""
        if self.variance is None:
            return None
        return float(self.variance.sum() ** 0.5 / self.count.sum() / self.head.shape[1])


@dataclass(frozen=True)
class Likelihood:
    """sums, count: (documents,) nats and tokens; every token but a document's first is scored once. variance: as of blocks."""

    sums: np.ndarray
    count: np.ndarray
    variance: np.ndarray | None = None

    @property
    def monte_carlo(self) -> float | None:
        return None if self.variance is None else float(self.variance.sum() ** 0.5 / self.count.sum())


@dataclass(frozen=True)
class Likelihoods:
    """chain: of the trunk alone. blocks, direct: of the head, by block size."""

    chain: Likelihood
    blocks: dict[int, BlockLikelihood]
    direct: dict[int, Likelihood]


@torch.no_grad()
def likelihoods(
    model: Any,
    store: TokenStore,
    length: int,
    sizes: Sequence[int] = (),
    batch: int = 8,
    quiet: bool = False,
    seed: int = 0,
) -> Likelihoods:
    """All scores from one pass. model: trunk and head. length: tokens of context at most. sizes: of blocks, the head's
    at most: a causal head's first k positions are its law of k tokens. The direct law covers the same tokens as
    the chain's; a document's last block may be short. seed: of bounds, addressed by the anchor's place in the store."""
    documents, largest = len(store.offsets) - 1, max(sizes, default=1)
    chain = Likelihood(*np.zeros((2, documents)))
    drawn = bool(sizes) and not model.head.exact
    noise = lambda: np.zeros(documents) if drawn else None  # noqa: E731
    blocks = {
        k: BlockLikelihood(np.zeros((documents, k)), np.zeros((documents, k)), np.zeros(documents), noise())
        for k in sizes
    }
    direct = {k: Likelihood(np.zeros(documents), np.zeros(documents), noise()) for k in sizes}
    for part in _windows(model, store, length, largest, batch, quiet):
        hidden, _ = model.states(part.inputs)
        targets, mask = part.blocks(largest)
        own = _trunk_nll(model, hidden, targets[..., 0])
        _add(chain, part, mask[..., 0], own[..., None], mask[..., :1])
        if not sizes:
            continue
        anchors = mask[..., 0]
        nll, spread = own.new_zeros(targets.shape), own.new_zeros(targets.shape)
        nll[anchors], spread[anchors] = _head_nll(model, hidden, part, anchors, targets[anchors], seed)
        # the trunk's loss at the K targets of position i: those of positions i..i+K−1; the last lie in the next window
        follows = torch.nn.functional.pad(own, (0, largest - 1)).unfold(1, largest, 1)
        place, offset = torch.arange(part.length, device=hidden.device), _offset(part, store)
        for k in blocks:
            whole = mask[..., k - 1] & (place <= part.length - k)
            index = part.document[:, : part.length][whole].cpu().numpy()
            np.add.at(blocks[k].head, index, nll[whole][:, :k].double().cpu().numpy())
            np.add.at(blocks[k].trunk, index, follows[whole][:, :k].double().cpu().numpy())
            np.add.at(blocks[k].count, index, 1)
            starts = anchors & (offset % k == 0)
            _add(direct[k], part, starts, nll[..., :k], mask[..., :k])
            if drawn:
                last = mask[..., :k].sum(-1, keepdim=True).clamp_min(1) - 1
                of_block = spread.gather(-1, last)[..., 0].square()  # of the block's beginning that is inside the text
                for variance, chosen in ((blocks[k].variance, whole), (direct[k].variance, starts)):
                    assert variance is not None
                    where = part.document[:, : part.length][chosen].cpu().numpy()
                    np.add.at(variance, where, of_block[chosen].double().cpu().numpy())
    for k, sums in blocks.items():
        if not sums.count.any():
            raise ValueError(f"the text holds no whole block of {k} tokens inside a window of {length}")
    return Likelihoods(chain, blocks, direct)


def block_likelihood(
    model: Any, store: TokenStore, length: int = 256, block_size: int | None = None, batch: int = 8, quiet: bool = False
) -> BlockLikelihood:
    size = block_size or model.head.block_size
    return likelihoods(model, store, length, [size], batch, quiet).blocks[size]


def _trunk_nll(model: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """(batch, length): −log of the trunk's own law of the next token."""
    context = model.context(hidden.flatten(0, 1))
    return row_nll([context.hidden], [context.unembedding], targets.flatten(), context.bias).view(targets.shape)


def _head_nll(
    model: Any, hidden: Tensor, part: TokenBatch, anchors: Tensor, targets: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """(N, K) twice, of the blocks of these anchors: see `head_nll`. A mean over noise takes the same draws for an anchor in any
    batch."""
    assert part.position is not None
    rng = Rng(seed, part.position[:, : part.length][anchors])
    return head_nll(model.head, model.anchored(hidden, part.tokens, anchors), targets, rng)


def head_nll(head: Any, ctx: BlockContext, targets: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
    """(N, K) twice: what each target adds to −log q of its block's beginning, and the standard error of that −log q given the
    text, 0 of an exact head. rng: addressed by anchor, of heads that are not."""
    if head.exact:
        nll = -head.log_prob(ctx, targets)
        return nll, torch.zeros_like(nll)
    found = head.estimate_prefixes(ctx, targets, rng, DRAWS)
    steps = found.log_prob.diff(dim=1, prepend=torch.zeros_like(found.log_prob[:, :1]))
    return -steps.to(ctx.hidden.dtype), found.stderr.to(ctx.hidden.dtype)


def _offset(part: TokenBatch, store: TokenStore) -> Tensor:
    """(batch, length): places of the inputs in their documents."""
    assert part.position is not None
    starts = torch.from_numpy(store.offsets).to(part.tokens.device)
    return part.position[:, : part.length] - starts[part.document[:, : part.length].clamp_min(0)]


def _windows(model: Any, store: TokenStore, length: int, reach: int, batch: int, quiet: bool) -> Iterator[TokenBatch]:
    windows = TextWindows(store, length, reach, batch, seed=0)
    bar = tqdm(range(0, windows.num_windows, batch), desc="likelihood", disable=True if quiet else None, leave=False)
    for low in bar:
        yield windows.windows(range(low, min(low + batch, windows.num_windows))).to(model.device)


def _add(total: Likelihood, part: TokenBatch, anchors: Tensor, nll: Tensor, mask: Tensor) -> None:
    """nll, mask: (batch, length, K) → each document's sums, over the anchors' blocks."""
    index = part.document[:, : part.length][anchors].cpu().numpy()
    np.add.at(total.sums, index, (nll * mask)[anchors].sum(1).double().cpu().numpy())
    np.add.at(total.count, index, mask[anchors].sum(1).cpu().numpy())


def gap_closed(independent: BlockLikelihood, joint: BlockLikelihood, resamples: int = 500) -> tuple[float, float]:
    """Share of the NLL gap between independent head and trunk that the joint head closes at positions
    2..K, with its bootstrap error over documents. Both must have scored the same blocks on one trunk."""
    if not same_blocks(independent, joint):
        raise ValueError("the two heads were not scored on the same blocks of one trunk")
    sums = np.stack([part[:, 1:].sum(1) for part in (independent.head, joint.head, joint.trunk)])

    def share(weights: np.ndarray) -> np.ndarray:
        a, b, c = sums @ weights
        return (a - b) / (a - c)

    documents = sums.shape[1]
    picks = np.random.default_rng(0).multinomial(documents, np.full(documents, 1 / documents), size=resamples).T
    return float(share(np.ones(documents))), float(share(picks.astype(float)).std())


def same_blocks(a: BlockLikelihood, b: BlockLikelihood) -> bool:
    """The same blocks of one text, under one trunk."""
    return (
        a.trunk.shape == b.trunk.shape and np.array_equal(a.count, b.count) and np.allclose(a.trunk, b.trunk, rtol=1e-4)
    )


def standard_error(sums: np.ndarray, count: np.ndarray, resamples: int = 500) -> float | None:
    """Of Σ sums / Σ count over documents, by the bootstrap. sums, count: (documents,). None of one document."""
    documents = len(count)
    if documents < 2:
        return None
    picks = np.random.default_rng(0).multinomial(documents, np.full(documents, 1 / documents), size=resamples)
    spread = ((picks @ sums) / np.maximum(picks @ count, 1)).std()
    return float(spread * (documents / (documents - 1)) ** 0.5)
