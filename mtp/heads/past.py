"""What lies before an anchor, for heads whose modules read the whole text and not one state of it.

One window of text may hold many anchors (a training batch, every anchor's block being the window's own next tokens), or
each anchor has a row to itself (decoding), which grows and may be rolled back.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mtp.decoding.row_cache import RowCache


@dataclass(frozen=True)
class Past:
    """hidden: (B, L, d) trunk states; tokens: (B, ≥ L) what the trunk read, beyond L what follows; row, place: (N,) where
    each anchor stands. text: a block asked about is the window's own next tokens, so that one pass over the windows
    serves all anchors. cache: keys and values of the modules, of which the last `recent` places of a row are to be made anew; reach: places of any row, which the host knows.
    states: (N, M, d), what the modules make of x_1..x_M at each anchor, where that is known."""

    hidden: Tensor
    tokens: Tensor
    row: Tensor
    place: Tensor
    text: bool = False
    cache: RowCache | None = None
    recent: int = 0
    reach: int = 0
    states: Tensor | None = None

    def part(self, rows: Tensor | slice) -> "Past":
        """Of these anchors alone."""
        states = None if self.states is None else self.states[rows]
        return replace(self, row=self.row[rows], place=self.place[rows], states=states)

    @classmethod
    def of_windows(cls, hidden: Tensor, tokens: Tensor, anchors: Tensor, text: bool = True) -> "Past":
        """anchors: (B, L) bool."""
        row, place = torch.nonzero(anchors, as_tuple=True)
        return cls(hidden, tokens, row, place, text)

    def alone(self, x: Tensor) -> "Past":
        """Each anchor in a window of its own, followed by its block x (N, M) instead of the text's tokens."""
        length = self.hidden.shape[1]
        index = torch.arange(length + x.shape[1], device=x.device) - self.place[:, None] - 1
        given = self.tokens[self.row][:, :length]
        given = torch.nn.functional.pad(given, (0, length + x.shape[1] - given.shape[1]))
        tokens = torch.where(index < 0, given, x.gather(1, index.clamp(0, x.shape[1] - 1)))
        rows = torch.arange(len(x), device=x.device)
        return Past(self.hidden[self.row], tokens, rows, self.place)

    def pick(self, states: Tensor) -> Tensor:
        """(B, L, …) → (N, …), at the anchors."""
        return states[self.row, self.place]


class History:
    """The past of rows that are being decoded: trunk states, tokens, and the modules' keys and values.

    A module of depth k at place j reads token j + k. When a block hangs on place i, all modules at the last K − 1 places
    before i read tokens of it, so they are made again once it is judged: `recent` places cover that and a whole block more.
    """

    def __init__(self, batch: int, capacity: int, width: int, block_size: int, device: Any, dtype: torch.dtype) -> None:
        # what is padding goes to the place after the last
        self.hidden = torch.zeros(batch, capacity + 1, width, device=device, dtype=dtype)
        self.tokens = torch.zeros(batch, capacity + 1, device=device, dtype=torch.long)
        self.cache = RowCache(batch, capacity + 1, device, dtype)
        self.reach, self.block_size, self.rows = 0, block_size, torch.arange(batch, device=device)

    def add(self, tokens: Tensor, hidden: Tensor, places: Tensor, read: Tensor | None = None) -> None:
        """tokens (batch, n), hidden (batch, n, d): what a pass of the trunk read and made. read: (batch, n), 0 for padding."""
        places = places if read is None else places.masked_fill(read == 0, self.tokens.shape[1] - 1)
        rows = self.rows[:, None]
        self.tokens[rows, places], self.hidden[rows, places] = tokens, hidden
        self.reach = min(self.reach + tokens.shape[1], self.tokens.shape[1] - 1)

    def at(self, place: Tensor) -> Past:
        """place: (batch,) of each row's newest token."""
        first = not self.cache.buffers
        recent = self.reach if first else min(2 * self.block_size - 1, self.reach)
        self.cache.lengths = (place - recent + 1).clamp_min(0)
        return replace(
            Past(self.hidden, self.tokens, self.rows, place), cache=self.cache, recent=recent, reach=self.reach
        )
