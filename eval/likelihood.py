"""Exact block likelihood on text, beside the trunk's own chain on the very same targets.

For every position i whose next K tokens lie in its document, −log q(x_{i+k} | h_i, x_{i+1..i+k−1}),
k = 1..K, and −log p(x_{i+k} | x_{≤ i+k−1}) of the trunk: the misspecification gap is their
difference. Sums are kept per document, so that the data error can be bootstrapped.
"""

from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

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


@torch.no_grad()
def block_likelihood(
    model, store: TokenStore, length: int = 256, block_size: int | None = None, batch: int = 8, quiet: bool = False
) -> BlockLikelihood:
    """model: trunk and head. length: tokens of context at most. block_size: at most the head's."""
    size = block_size or model.head.block_size
    windows = TextWindows(store, length, size, batch, seed=0)
    documents = len(store.offsets) - 1
    head, trunk = np.zeros((documents, size)), np.zeros((documents, size))
    count = np.zeros(documents)
    bar = tqdm(range(0, windows.num_windows, batch), desc="likelihood", disable=True if quiet else None, leave=False)
    for low in bar:
        part = windows.windows(range(low, min(low + batch, windows.num_windows))).to(model.device)
        hidden, _ = model.states(part.inputs)
        targets, mask = part.blocks(size)
        everything = model.context(hidden.flatten(0, 1))
        own = row_nll([everything.hidden], [everything.unembedding], targets[..., 0].flatten(), everything.bias)
        # the trunk's loss at the K targets of position i: those of positions i..i+K−1
        chain = own.view(hidden.shape[:2]).unfold(1, size, 1)
        whole = mask.all(-1)[:, : chain.shape[1]]
        anchors = torch.nn.functional.pad(whole, (0, hidden.shape[1] - whole.shape[1]))
        nll = -model.head.log_prob(model.context(hidden[anchors]), targets[anchors])
        index = part.document[:, : part.length][anchors].cpu().numpy()
        np.add.at(head, index, nll.double().cpu().numpy())
        np.add.at(trunk, index, chain[whole].double().cpu().numpy())
        np.add.at(count, index, 1)
    return BlockLikelihood(head, trunk, count)


def gap_closed(independent: BlockLikelihood, joint: BlockLikelihood, resamples: int = 500) -> tuple[float, float]:
    """Share of the NLL gap between independent head and trunk that the joint head closes at positions
    2..K, with its bootstrap error over documents. Both must have scored the same blocks on one trunk."""
    if not np.array_equal(independent.count, joint.count) or not np.allclose(independent.trunk, joint.trunk, rtol=1e-4):
        raise ValueError("the two heads were not scored on the same blocks of one trunk")
    sums = np.stack([part[:, 1:].sum(1) for part in (independent.head, joint.head, joint.trunk)])

    def share(weights: np.ndarray) -> np.ndarray:
        a, b, c = sums @ weights
        return (a - b) / (a - c)

    documents = sums.shape[1]
    picks = np.random.default_rng(0).multinomial(documents, np.full(documents, 1 / documents), size=resamples).T
    return float(share(np.ones(documents))), float(share(picks.astype(float)).std())


def standard_error(sums: np.ndarray, count: np.ndarray, resamples: int = 500) -> float:
    """Of Σ sums / Σ count over documents, by the bootstrap. sums, count: (documents,)."""
    documents = len(count)
    picks = np.random.default_rng(0).multinomial(documents, np.full(documents, 1 / documents), size=resamples)
    return float(((picks @ sums) / np.maximum(picks @ count, 1)).std())
