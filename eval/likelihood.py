"""Exact likelihood of text, summed for each document, so that the data error can be bootstrapped.

Three scores of the same store: the trunk's own chain; the block law −log q(x_{i+1..i+K} | h_i) at every
position i, beside the trunk's chain on the very same targets (their difference is the
misspecification gap); and the direct law, the text cut into consecutive blocks and scored by the head
alone, which is the likelihood of what verification-free decoding writes.
Text is cut into windows; a token's context is its window before it, at most.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mtp.batch import TokenBatch
from mtp.losses.linear_nll import row_nll
from training.data.store import TokenStore
from training.data.windows import TextWindows


@dataclass(frozen=True)
class BlockLikelihood:
    """head, trunk: (documents, K) summed nats; count: (documents,) blocks scored."""

    head: np.ndarray
    trunk: np.ndarray
    count: np.ndarray

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """(K,) nats per token of head and trunk, over all blocks."""
        return self.head.sum(0) / self.count.sum(), self.trunk.sum(0) / self.count.sum()


@dataclass(frozen=True)
class Likelihood:
    """sums, count: (documents,) nats and tokens; every token but a document's first is scored once."""

    sums: np.ndarray
    count: np.ndarray


def block_likelihood(
    model, store: TokenStore, length: int = 256, block_size: int | None = None, batch: int = 8, quiet: bool = False
) -> BlockLikelihood:
    """model: trunk and head. length: tokens of context at most. block_size: at most the head's."""
    size = block_size or model.head.block_size
    return block_likelihoods(model, store, length, [size], batch, quiet)[size]


@torch.no_grad()
def block_likelihoods(
    model, store: TokenStore, length: int, sizes: Sequence[int], batch: int = 8, quiet: bool = False
) -> dict[int, BlockLikelihood]:
    """Of one head at several block sizes, from one pass: a causal head's first k positions are its law of k tokens."""
    largest = max(sizes)
    documents = len(store.offsets) - 1
    made = {k: BlockLikelihood(np.zeros((documents, k)), np.zeros((documents, k)), np.zeros(documents)) for k in sizes}
    for part in _windows(model, store, length, largest, batch, quiet):
        hidden, _ = model.states(part.inputs)
        targets, mask = part.blocks(largest)
        everything = model.context(hidden.flatten(0, 1))
        own = row_nll([everything.hidden], [everything.unembedding], targets[..., 0].flatten(), everything.bias)
        own = own.view(hidden.shape[:2])
        # where the smallest block is whole; the chain's last targets lie in the next window
        reached = torch.arange(part.length, device=hidden.device) <= part.length - min(sizes)
        anchors = mask[..., min(sizes) - 1] & reached
        whole, index = mask[anchors], part.document[:, : part.length][anchors].cpu().numpy()
        nll = -model.head.log_prob(model.context(hidden[anchors]), targets[anchors])
        # the trunk's loss at the K targets of position i: those of positions i..i+K−1
        chain = torch.nn.functional.pad(own, (0, largest - 1)).unfold(1, largest, 1)[anchors]
        left = part.length - torch.nonzero(anchors)[:, 1]
        for k, sums in made.items():
            kept = whole[:, k - 1] & (left >= k)
            rows = index[kept.cpu().numpy()]
            np.add.at(sums.head, rows, nll[kept, :k].double().cpu().numpy())
            np.add.at(sums.trunk, rows, chain[kept, :k].double().cpu().numpy())
            np.add.at(sums.count, rows, 1)
    for k, sums in made.items():
        if not sums.count.any():
            raise ValueError(f"the text holds no whole block of {k} tokens inside a window of {length}")
    return made


@torch.no_grad()
def chain_likelihood(model: Any, store: TokenStore, length: int, batch: int = 8, quiet: bool = False) -> Likelihood:
    """Of the trunk's own chain, the document's end included."""
    total = Likelihood(*np.zeros((2, len(store.offsets) - 1)))
    for part in _windows(model, store, length, 1, batch, quiet):
        hidden, _ = model.states(part.inputs)
        targets, mask = part.blocks(1)
        anchors = mask[..., 0]
        context = model.context(hidden[anchors])
        nll = row_nll([context.hidden], [context.unembedding], targets[anchors][:, 0], context.bias)
        _add(total, part, anchors, nll[:, None], torch.ones_like(nll, dtype=torch.bool)[:, None])
    return total


@torch.no_grad()
def direct_likelihood(
    model: Any, store: TokenStore, length: int, block_size: int, batch: int = 8, quiet: bool = False
) -> Likelihood:
    """Of direct decoding: each document cut into consecutive blocks, each drawn whole from the head. The same
    tokens as the chain's; a document's last block may be short."""
    total = Likelihood(*np.zeros((2, len(store.offsets) - 1)))
    starts = torch.from_numpy(store.offsets)
    for part in _windows(model, store, length, block_size, batch, quiet):
        hidden, _ = model.states(part.inputs)
        targets, mask = part.blocks(block_size)
        document = part.document[:, : part.length]
        assert part.position is not None
        offset = part.position[:, : part.length] - starts.to(document.device)[document.clamp_min(0)]
        anchors = mask[..., 0] & (offset % block_size == 0)
        nll = -model.head.log_prob(model.context(hidden[anchors]), targets[anchors])
        _add(total, part, anchors, nll, mask[anchors])
    return total


def _windows(model: Any, store: TokenStore, length: int, reach: int, batch: int, quiet: bool) -> Iterator[TokenBatch]:
    windows = TextWindows(store, length, reach, batch, seed=0)
    bar = tqdm(range(0, windows.num_windows, batch), desc="likelihood", disable=True if quiet else None, leave=False)
    for low in bar:
        yield windows.windows(range(low, min(low + batch, windows.num_windows))).to(model.device)


def _add(total: Likelihood, part: TokenBatch, anchors: Tensor, nll: Tensor, mask: Tensor) -> None:
    """nll, mask: (anchors, K) → each document's sums."""
    index = part.document[:, : part.length][anchors].cpu().numpy()
    np.add.at(total.sums, index, (nll * mask).sum(1).double().cpu().numpy())
    np.add.at(total.count, index, mask.sum(1).cpu().numpy())


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
