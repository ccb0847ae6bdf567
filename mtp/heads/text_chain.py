"""A block chain whose slots also look back at the text: what the trunk's last state leaves out can be read again.

Beside the slots before it (block_chain.py), slot j attends to one entry for each place m ≤ i of the text,

    e_m = W [norm(h_{m−1}); norm(h_m); norm(E x_m)],

so that a drafted token can be held against every place where the like was written, and against what followed there.
What is found there are states of the trunk, and the correction speaks of words as the trunk does (`tied`), so that they
can be passed on. Entries do not depend on the block: they are made once for a window and all its anchors, and kept while decoding. What a
drawn token costs is narrow blocks and a low-rank readout, as in every chain.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from mtp.heads.base import BlockContext
from mtp.heads.block_chain import BlockChain, Slots
from mtp.heads.past import Past
from mtp.heads.rotary import rotate


@dataclass(frozen=True)
class Text:
    """pairs: keys and values of each layer, (B, heads, L, size). seen: (B, A, L), what each of a window's A anchors may look
    at. row, slot, place: (N,), where the anchors are among the B · A, and in their text."""

    pairs: list[tuple[Tensor, Tensor]]
    seen: Tensor
    row: Tensor
    slot: Tensor
    place: Tensor


class TextChain(BlockChain):
    name = "text-chain"
    needs_past: ClassVar[bool] = True
    tied_unless_told: ClassVar[bool] = True

    def complete(self, hidden_size: int, embedding_size: int, width: int, num_heads: int, num_layers: int) -> None:
        self.hidden_norm, self.word_norm = nn.RMSNorm(hidden_size), nn.RMSNorm(embedding_size)
        self.entry = nn.Linear(2 * hidden_size + embedding_size, width, bias=False)
        self.reads = nn.ModuleList(Read(width, num_heads) for _ in range(num_layers))

    def start(self, ctx, base):
        return replace(super().start(ctx, base), text=self._text(ctx))

    def read(self, n: int, z: Tensor, state: Slots) -> Tensor:
        return z + self.reads[n](z, state.text, n, state.position)

    def _text(self, ctx: BlockContext) -> Text:
        past = self.past_of(ctx)
        hidden, tokens, length = past.hidden, past.tokens, past.hidden.shape[1]
        if past.cache is not None:  # what is new, and what a block before may have left there
            places, _ = past.cache.open(past.recent, past.reach)
            length = past.reach
        else:
            places = torch.arange(length, device=hidden.device).expand(len(hidden), -1)
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        before = self.hidden_norm(hidden[rows, (places - 1).clamp_min(0)]) * (places > 0)[..., None]
        words = self.word_norm(nn.functional.embedding(tokens[rows, places], ctx.embedding))
        entries = self.entry(torch.cat([before, self.hidden_norm(hidden[rows, places]), words], -1))
        made = [read.keys_and_values(entries, places) for read in self.reads]  # type: ignore[operator]
        if past.cache is not None:
            made = [past.cache.update(*pair, n) for n, pair in enumerate(made)]
        slot, anchors = _slots(past)
        # a slot that no anchor takes looks at the first entry, and nobody looks at it
        last = past.place.new_zeros(len(hidden), anchors).index_put((past.row, slot), past.place)
        seen = torch.arange(length, device=hidden.device) <= last[..., None]
        return Text(made, seen, past.row, slot, past.place)


class Read(nn.Module):
    """Attention of slots to the text's entries. Nothing at the start."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm, self.entry_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.kv = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.proj.weight)

    def keys_and_values(self, entries: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """entries: (B, C, width) of places (B, C) → (B, heads, C, width / heads) each."""
        keys, values = self.kv(self.entry_norm(entries)).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        return rotate(keys, places).transpose(1, 2), values.transpose(1, 2)

    def forward(self, z: Tensor, text: Text, n: int, position: int) -> Tensor:
        """z: (N, M, width), the slots from `position` on, each at its token's place; n: which layer's keys."""
        num_slots = z.shape[1]
        places = text.place[:, None] + 1 + position + torch.arange(num_slots, device=z.device)
        q = rotate(self.q(self.norm(z)).unflatten(-1, (self.num_heads, -1)), places)
        keys, values = text.pairs[n]
        batch, anchors = text.seen.shape[:2]
        asked = q.new_zeros(batch, anchors, *q.shape[1:]).index_put((text.row, text.slot), q)
        seen = text.seen[:, None, :, None].expand(-1, -1, -1, num_slots, -1).flatten(2, 3)
        found = nn.functional.scaled_dot_product_attention(
            asked.flatten(1, 2).transpose(1, 2), keys.to(q.dtype), values.to(q.dtype), seen
        )
        found = found.transpose(1, 2).unflatten(1, (anchors, num_slots))[text.row, text.slot]
        return self.proj(found.flatten(2))


def _slots(past: Past) -> tuple[Tensor, int]:
    """Which of its window's anchors each one is, (N,), and the most that a window has."""
    if past.cache is not None:
        return torch.zeros_like(past.row), 1
    order = past.row.argsort(stable=True)
    count = past.row.bincount(minlength=len(past.hidden))
    slot = torch.empty_like(past.row)
    slot[order] = torch.arange(len(order), device=order.device) - (count.cumsum(0) - count)[past.row[order]]
    return slot, max(1, int(count.max()))
