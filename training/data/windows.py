"""Global batches as pure functions of (seed, batch index, sample index).

A data set here has `batch(n, samples)`: the rows `samples` of global batch n. Any rank or
micro-batch asks for its own rows; nothing is consumed, so nothing has to be saved to resume.
"""

import copy
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from flowmap.rng import Rng
from mtp.batch import TokenBatch
from training.data.store import TokenStore


class Dataset(Protocol):
    batch_size: int

    def batch(self, n: int, samples: Tensor) -> TokenBatch: ...


class TextWindows:
    """Windows of `length` tokens with `reach` more as targets, in an order shuffled for each epoch."""

    def __init__(self, store: TokenStore, length: int, reach: int, batch_size: int, seed: int) -> None:
        self.store, self.length, self.reach = store, length, reach
        self.batch_size, self.seed = batch_size, seed
        self.num_windows = -(-(len(store.tokens) - 1) // length)
        if self.num_windows < 1:
            raise ValueError("the corpus holds no text: nothing to train on")

    def batch(self, n: int, samples: Tensor) -> TokenBatch:
        return self.windows(self.order(n, samples))

    def order(self, n: int, samples: Tensor) -> list[int]:
        """Which windows make up these rows of global batch n."""
        wanted = [n * self.batch_size + int(j) for j in samples]
        permutations = {
            epoch: torch.randperm(
                self.num_windows, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            )
            for epoch in {w // self.num_windows for w in wanted}
        }
        return [int(permutations[w // self.num_windows][w % self.num_windows]) for w in wanted]

    def windows(self, indices: Sequence[int]) -> TokenBatch:
        starts = np.asarray(indices, dtype=np.int64) * self.length
        positions = starts[:, None] + np.arange(self.length + self.reach)
        inside = positions < len(self.store.tokens)
        positions = np.minimum(positions, len(self.store.tokens) - 1)
        document = np.where(inside, self.store.documents_of(positions), -1)
        return TokenBatch(
            torch.from_numpy(self.store.tokens[positions].astype(np.int64)),
            torch.from_numpy(document),
            torch.from_numpy(inside),
            self.length,
            position=torch.from_numpy(positions),
        )


class CaseRows:
    """Prompt and answer drawn afresh for every sample from a finite table of weighted rows.

    rows: (R, T) tokens, padded on the right; prompt_lengths and lengths: (R,); weights: (R,).
    Only answer tokens are targets. starts_only: the head is trained where decoding hangs its blocks, at
    the prompt's end and every `reach` tokens after it, and nowhere else: K times less work.
    """

    def __init__(
        self,
        rows: Tensor,
        prompt_lengths: Tensor,
        lengths: Tensor,
        weights: Tensor,
        reach: int,
        batch_size: int,
        seed: int,
        starts_only: bool = False,
    ) -> None:
        self.rows = torch.nn.functional.pad(rows, (0, reach))
        position = torch.arange(self.rows.shape[1])
        self.document = torch.where(position < lengths[:, None], 0, -1)
        self.scored = (position >= prompt_lengths[:, None]) & (position < lengths[:, None])
        self.cdf = weights.double().cumsum(0) / weights.double().sum()
        self.length, self.batch_size, self.seed = rows.shape[1], batch_size, seed
        after = torch.arange(self.length) - (prompt_lengths[:, None] - 1)
        self.starts = (after >= 0) & (after % reach == 0) if starts_only else None

    def batch(self, n: int, samples: Tensor) -> TokenBatch:
        uniform = Rng(self.seed, samples, n).uniform("case", len(samples), dtype=torch.float64)
        return self.take(torch.searchsorted(self.cdf, uniform, right=True).clamp_max(len(self.cdf) - 1))

    def with_seed(self, seed: int) -> "CaseRows":
        """The same table, other draws."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def take(self, index: Tensor) -> TokenBatch:
        starts = None if self.starts is None else self.starts[index]
        return TokenBatch(self.rows[index], self.document[index], self.scored[index], self.length, None, starts)
