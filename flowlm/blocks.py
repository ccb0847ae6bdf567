"""Block-autoregressive flow (the loop of 2503.09573, with codes as states): each block is refined behind clean tokens.

    P(x) = Π_b P(x^b | x^{<b}),   each factor a flow language model of one block, whose context is clean

A window is cut into blocks of one size. In training it stands twice in one sequence, [clean | noisy], each state at the
place of its token, so that all blocks learn in one pass behind what truly came before. In writing the noisy copy is one
block, and what stands before it is read once and kept in a cache. Both are this context: which clean tokens there are,
where the noisy states begin, and a mask made of three,

    own_noisy_block          a noisy state looks at the noisy states of its own block,
    clean_blocks_before      and at the clean states of strictly earlier blocks;
    clean_to_own_block       a clean state looks at the clean states up to the end of its own block.

Shapes: B rows, N noisy states, P clean ones, n queries, m keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from flowlm.token_map import Known, Layout, Reader


@dataclass(frozen=True)
class States:
    """block: of each state, clean: whether it is of the clean copy; shaped to broadcast over (B, n, m)."""

    block: Tensor
    clean: Tensor


def own_noisy_block(query: States, key: States) -> Tensor:
    return ~query.clean & ~key.clean & (key.block == query.block)


def clean_blocks_before(query: States, key: States) -> Tensor:
    return ~query.clean & key.clean & (key.block < query.block)


def clean_to_own_block(query: States, key: States) -> Tensor:
    return query.clean & key.clean & (key.block <= query.block)


def block_mask(query: States, key: States) -> Tensor:
    """(B, 1, n, m) bool, True = look."""
    parts = (part(query, key) for part in (own_noisy_block, clean_blocks_before, clean_to_own_block))
    return torch.stack(torch.broadcast_tensors(*parts)).any(0)[:, None]


@dataclass(frozen=True)
class Blocks:
    """Context of a token map whose states are whole blocks of a window.

    tokens: (B, P), what the clean copy holds from place 0 on. size: (B,), tokens of a block. known: (B, N), of the noisy
    states. first: the place at which they begin. cache: transformers' DynamicCache of clean states that were read before;
    what of `tokens` it has not, the next pass reads and adds, together with the noisy states, which are never kept."""

    tokens: Tensor
    size: Tensor
    known: Known
    first: int = 0
    cache: Any = None

    def __getitem__(self, rows: Any) -> "Blocks":
        if self.cache is not None:
            raise ValueError("what is cached belongs to whole batches: rows of a context with a cache cannot be taken")
        return replace(self, tokens=self.tokens[rows], size=self.size[rows], known=self.known[rows])

    def to(self, device: torch.device) -> "Blocks":
        return replace(self, tokens=self.tokens.to(device), size=self.size.to(device), known=self.known.to(device))

    def knowing(self, known: Known) -> "Blocks":
        return replace(self, known=known)

    def settle(self, logits: Tensor) -> Tensor:
        return self.known.settle(logits)

    def lay_out(self, seen: Layout, read: Reader) -> Layout:
        """[clean | noisy], of the clean what the cache has not."""
        seen = self.known.lay_out(seen, read)
        held = 0 if self.cache is None else self.cache.get_seq_length()
        fresh = self.tokens[:, held:]
        new = fresh.shape[1]
        of_clean = torch.arange(held + new, device=fresh.device)
        of_noisy = torch.arange(self.first, self.first + seen.x.shape[1], device=fresh.device)
        places = torch.cat([of_clean, of_noisy])
        block, clean = places // self.size[:, None], torch.arange(len(places), device=fresh.device) < held + new
        mask = block_mask(States(block[:, held:, None], clean[held:, None]), States(block[:, None], clean))
        t, s = (time if time.ndim == 1 else pad(time, (new, 0)) for time in (seen.t, seen.s))
        return replace(
            seen, x=torch.cat([read(fresh).to(seen.x), seen.x], 1), t=t, s=s, mask=mask, places=places[held:],
            clean=pad(self.known.at, (new, 0), value=True),
            self_cond=None if seen.self_cond is None else pad(seen.self_cond, (0, 0, new, 0)),
            cache=None if self.cache is None else FirstStates(self.cache, new),
        )  # fmt: skip


class FirstStates:
    """A cache that keeps the first `count` states of the next pass alone; those behind them see it all the same."""

    def __init__(self, cache: Any, count: int) -> None:
        self.cache, self.count = cache, count

    def get_seq_length(self) -> int:
        return self.cache.get_seq_length()

    def update(self, k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if self.count:
            self.cache.update(k[:, :, : self.count], v[:, :, : self.count], layer)
        elif not self.cache.get_seq_length(layer):
            return k, v
        held, behind = self.cache.layers[layer], slice(self.count, None)
        return torch.cat([held.keys, k[:, :, behind]], 2), torch.cat([held.values, v[:, :, behind]], 2)


def cut_to_blocks(
    known: Known, trained: Sequence[int] | None, asked: int | None = None, end: int | None = None
) -> tuple[int, Known]:
    """The size of a block, and windows as far as their blocks reach the end. trained: sizes that a model knows; none: whole
    windows. asked: one of them, default the longest."""
    length = known.at.shape[1]
    sizes = list(trained or [length])
    if asked is not None and asked not in sizes:
        raise ValueError(f"block length {asked}: this model was trained with {', '.join(map(str, sizes))}")
    size = asked or max(sizes)
    known = known[:, : -(-(end or length) // size) * size]
    if unseen(known.at, size):
        raise ValueError(
            f"blocks of {size} are written from left to right and see nothing of what is known behind them: take longer ones"
        )
    return size, known


def unseen(at: Tensor, size: int) -> bool:
    """Whether a row, (batch, n) bool, has known tokens in a block behind one that has to be written."""
    blocks = at.unflatten(1, (-1, size))
    to_write = ~blocks.all(2)
    return bool((blocks.any(2) & (to_write.long().cumsum(1) - to_write.long() > 0)).any())
