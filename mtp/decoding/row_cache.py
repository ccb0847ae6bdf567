"""Keys and values of rows that advance by different lengths, in one buffer of the final size.

A pass writes each row's new entries where that row stands; to roll a row back is to stand earlier, for what lies
beyond is never looked at and written over. Nothing here asks the device for a number.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache


class RowCache(Cache):
    """lengths: (batch,) entries of each row that count. capacity: of a row."""

    def __init__(self, batch: int, capacity: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(layers=[])
        self.dtype = dtype
        self.capacity, self.lengths = capacity, torch.zeros(batch, dtype=torch.long, device=device)
        self.buffers: list[tuple[Tensor, Tensor]] = []
        self.places, self.reach = self.lengths[:, None], 0

    def open(self, count: int, reach: int) -> tuple[Tensor, Tensor]:
        """Before a pass over `count` tokens a row. reach: entries that any row can have after it, which the host knows.
        → places (batch, count) and a mask to add, (batch, 1, count, reach), which every attention backend takes."""
        self.reach = min(reach, self.capacity)
        self.places = self.lengths[:, None] + torch.arange(count, device=self.lengths.device)
        entries = torch.arange(self.reach, device=self.lengths.device)
        hidden = (entries > self.places[..., None])[:, None]
        return self.places, torch.zeros(hidden.shape, dtype=self.dtype, device=hidden.device).masked_fill_(
            hidden, torch.finfo(self.dtype).min
        )

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any):
        """(batch, heads, count, size) → what may be looked at, (batch, heads, reach, size)."""
        if layer_idx == len(self.buffers):
            shape = (*key_states.shape[:2], self.capacity)
            self.buffers.append(
                (
                    key_states.new_zeros(*shape, key_states.shape[-1]),
                    value_states.new_zeros(*shape, value_states.shape[-1]),
                )
            )
        keys, values = self.buffers[layer_idx]
        rows = torch.arange(len(keys), device=keys.device)[:, None]
        for buffer, new in ((keys, key_states), (values, value_states)):
            buffer[rows, :, self.places] = new.transpose(1, 2)  # scatter_ goes through the whole buffer
        return keys[:, :, : self.reach], values[:, :, : self.reach]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Not a number of one row: position ids and mask are given with every pass."""
        return 0
