"""The text before a block, for heads that look back at it: one entry for each place m ≤ i,

    e_m = W [norm(h_{m−1}); norm(h_m); norm(E x_m)],

so that a drafted token can be held against every place where the like was written, and against what followed there.
Entries do not depend on the block: they are made once for a window and all its anchors, and kept while decoding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mtp.heads.base import BlockContext
from mtp.heads.past import Past
from mtp.heads.rotary import rotary, rotate, turn


@dataclass(frozen=True)
class Text:
    """pairs: keys and values of each reader, (B, heads, L, size). seen: (B, A, L), what each of a window's A anchors may look
    at. row, slot: (N,), where the anchors are among the B · A; no slot: each row has one, in their order. turns: (N, K−1, size), rotary cosines and sines of their
    blocks' places."""

    pairs: list[tuple[Tensor, Tensor]]
    seen: Tensor
    row: Tensor
    slot: Tensor | None
    turns: tuple[Tensor, Tensor]

    def by_window(self, x: Tensor) -> Tensor:
        """(N, …) → (B, A, …), zero where a window has fewer anchors."""
        if self.slot is None:
            return x[:, None]
        return x.new_zeros(*self.seen.shape[:2], *x.shape[1:]).index_put((self.row, self.slot), x)

    def by_anchor(self, x: Tensor) -> Tensor:
        """(B, A, …) → (N, …)."""
        return x[:, 0] if self.slot is None else x[self.row, self.slot]


class ReadsText:
    """What a head that looks back at the text has besides its own family."""

    needs_past: ClassVar[bool] = True

    def add_readers(self, readers: list["Read"], hidden_size: int, embedding_size: int, width: int) -> None:
        self.hidden_norm, self.word_norm = nn.RMSNorm(hidden_size), nn.RMSNorm(embedding_size)
        self.entry = nn.Linear(2 * hidden_size + embedding_size, width, bias=False)
        self.reads = nn.ModuleList(readers)

    def text_of(self, ctx: BlockContext) -> Text:
        past = self.past_of(ctx)  # type: ignore[attr-defined]
        hidden, tokens, length = past.hidden, past.tokens, past.hidden.shape[1]
        if past.cache is not None:  # what is new, and what a block before may have left there
            places, _ = past.cache.open(past.recent, past.reach)
            length = past.reach
        else:
            places = torch.arange(length, device=hidden.device).expand(len(hidden), -1)
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        near = torch.cat([(places[:, :1] - 1).clamp_min(0), places], 1)  # places of a row follow each other
        states = self.hidden_norm(hidden[rows, near].to(self.hidden_norm.weight.dtype))
        before = states[:, :-1] * (places > 0)[..., None]
        words = self.word_norm(nn.functional.embedding(tokens[rows, places], ctx.embedding))
        entries = self.entry(torch.cat([before, states[:, 1:], words], -1))
        made = [read.keys_and_values(entries, places) for read in self.reads]  # type: ignore[operator]
        if past.cache is not None:
            made = [past.cache.update(*pair, n) for n, pair in enumerate(made)]
            slot, last = None, past.place[:, None]
        else:  # a slot that no anchor takes looks at the first entry, and nobody looks at it
            slot, anchors = _slots(past)
            last = past.place.new_zeros(len(hidden), anchors).index_put((past.row, slot), past.place)
        seen = torch.arange(length, device=hidden.device) <= last[..., None]
        ahead = torch.arange(1, self.block_size, device=hidden.device)  # type: ignore[attr-defined]
        turns = rotary(past.place[:, None] + ahead, self.reads[0].size)  # type: ignore[arg-type]
        return Text(made, seen, past.row, slot, turns)


class Read(nn.Module):
    """Attention of slots to the text's entries. Nothing at the start."""

    def __init__(self, width: int, num_heads: int, norm: Callable[[int], nn.Module] = nn.RMSNorm) -> None:
        super().__init__()
        self.num_heads, self.size = num_heads, width // num_heads
        self.norm, self.entry_norm = norm(width), nn.RMSNorm(width)
        self.q, self.kv = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.proj.weight)

    def keys_and_values(self, entries: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """entries: (B, C, width) of places (B, C) → (B, heads, C, width / heads) each."""
        entries = self.entry_norm(entries.to(self.entry_norm.weight.dtype))
        keys, values = self.kv(entries).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        return rotate(keys, places).transpose(1, 2), values.transpose(1, 2)

    def forward(self, z: Tensor, text: Text, pair: tuple[Any, Any], position: int) -> Tensor:
        """z: (N, M, width), the slots from `position` on, each at its token's place; pair: this reader's of the text's."""
        q = self.q(self.norm(z)).unflatten(-1, (self.num_heads, -1))
        turns = (part[:, position : position + z.shape[1]] for part in text.turns)
        q, (keys, values) = text.by_window(turn(q, *turns)), pair
        anchors, num_slots = q.shape[1:3]
        seen = text.seen[:, None, :, None].expand(-1, -1, -1, num_slots, -1).flatten(2, 3)
        found = nn.functional.scaled_dot_product_attention(
            q.flatten(1, 2).transpose(1, 2), keys.to(q.dtype), values.to(q.dtype), seen
        )
        return self.proj(text.by_anchor(found.transpose(1, 2).unflatten(1, (anchors, num_slots))).flatten(2))


def _slots(past: Past) -> tuple[Tensor, int]:
    """Which of its window's anchors each one is, (N,), and the most that a window has."""
    order = past.row.argsort(stable=True)
    count = past.row.bincount(minlength=len(past.hidden))
    slot = torch.empty_like(past.row)
    slot[order] = torch.arange(len(order), device=order.device) - (count.cumsum(0) - count)[past.row[order]]
    return slot, max(1, int(count.max()))
