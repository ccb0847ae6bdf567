"""Rows of text that advance by different lengths on one cache: what is written, where each stands, which go on.

A pass writes its block behind what a row has committed; what is not kept of it is written over by the next. No row's
length is asked from the device. Shapes: prompts are moved to the front of their rows, `start` (batch,) tokens each.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtp.decoding.direct import Decoded, history_of, trim
from mtp.decoding.few_queries import few_query_attention
from mtp.decoding.row_cache import RowCache


@dataclass(frozen=True)
class Verified(Decoded):
    """log_q: nats under the trunk's law, or with verify none under the law drawn from. accepted: (batch, passes after
    the prompt's), tokens that each pass committed, none past an end token; 0 once a row had ended. read: as
    accepted, tokens that the pass had to read for that row: the draft up to its end."""

    accepted: Tensor
    read: Tensor

    @property
    def accepted_length(self) -> float:
        """Mean tokens per trunk pass over rows and passes, the prompt's left out."""
        return float(self.accepted.sum() / (self.accepted > 0).sum())

    @property
    def read_per_token(self) -> float:
        """Tokens that the trunk reads for each that is committed, the prompt left out: 1 at least."""
        return float(self.read.sum() / self.accepted.sum())


class Rows:
    """written: (batch,) new tokens of each row; open: (batch,), False once a row has ended. most: new tokens a row may
    have; size: of a block. past: keep the text for heads that read it."""

    def __init__(self, model: Any, ids: Tensor, start: Tensor, most: int, size: int, past: bool) -> None:
        batch, self.longest = ids.shape
        room = most + 2 * size  # a row that has ended goes on writing over the same places beyond its end
        self.model, self.start, self.most, self.size = model, start, most, size
        self.written, self.open = torch.zeros_like(start), torch.ones_like(start, dtype=torch.bool)
        self.text = torch.nn.functional.pad(ids, (0, room))
        self.log_p = torch.zeros(batch, self.longest + room, device=ids.device)
        self.cache = RowCache(batch, self.longest + room, ids.device, next(model.parameters()).dtype)
        self.history = history_of(model, batch, self.longest + room) if past else None
        self.limit = torch.full_like(start, most)
        self.last = (start + most - 1)[:, None]  # nothing past it is returned, and position tables may end there
        self.accepted: list[Tensor] = []
        self.seen: list[Tensor] = []

    def read_prompts(self) -> Tensor:
        """The trunk's pass over the prompts → its states at the last token of each, (batch, d)."""
        states = self._pass(self.text[:, : self.longest], self.longest)
        self.cache.lengths = self.start
        return pick_state(states, self.start - 1)

    def read(self, block: Tensor) -> Tensor:
        """The trunk's pass over a block (batch, n) behind what is written → its states there, (batch, n, d)."""
        self.text.scatter_(1, self._index(block.shape[1]), block)
        return self._pass(block, self.longest + (len(self.accepted) + 1) * self.size)

    def _pass(self, tokens: Tensor, reach: int) -> Tensor:
        places, mask = self.cache.open(tokens.shape[1], reach)
        with few_query_attention(self.model.trunk, len(tokens)):
            states, _ = self.model.states(tokens, mask, places.minimum(self.last), self.cache, True)
        if self.history is not None:
            self.history.add(tokens, states, places)
        return states

    def past(self) -> Any:
        """The text up to each row's newest token, for heads that read it."""
        return None if self.history is None else self.history.at(self.start + self.written - 1)

    def so_far(self, ahead: int) -> Tensor:
        """Of one row alone, (1, n): its text and `ahead` tokens of the block behind it."""
        return self.text[:, : int(self.start + self.written) + ahead]

    def commit(self, kept: Tensor, log_p: Tensor, seen: Tensor | int) -> Tensor:
        """Keep 1 + kept (batch,) tokens of the block last read. log_p: (batch, n), of all of it; seen: how many of it
        a row's draft had. → how many it committed, 0 in rows that had ended."""
        self.log_p.scatter_(1, self._index(log_p.shape[1]), log_p)
        count = (kept + 1) * self.open
        self.accepted.append(count)
        self.seen.append(seen * self.open)
        self.written, self.cache.lengths = self.written + count, self.cache.lengths + count
        return count

    def close(self, block: Tensor, count: Tensor, stops: Tensor, heard: Tensor | None) -> None:
        """After `commit`: which rows end with this block. heard: (batch,) tokens of it to keep where a listener ends a
        row, −1 elsewhere."""
        if heard is not None:
            ended = (heard >= 0) & self.open
            self.limit = torch.where(ended, (self.written - count + heard).clamp_max(self.most), self.limit)
            self.open = self.open & ~ended
        committed = torch.arange(block.shape[1], device=block.device) < count[:, None]
        self.open = self.open & ~(torch.isin(block, stops) & committed).any(1) & (self.written < self.most)

    def finish(self, stops: Tensor, pad_token: int) -> Verified:
        accepted = torch.stack(self.accepted, 1)
        accepted = accepted[:, : int((accepted > 0).any(0).sum())]
        new = self.start[:, None] + torch.arange(self.most, device=self.text.device)
        tokens, log_p, passes = self.text.gather(1, new), self.log_p.gather(1, new), accepted.shape[1] + 1
        whole = trim(tokens, log_p, stops, pad_token, passes, self.limit)
        total = accepted.cumsum(1)
        ended = whole.stopped | (self.limit < self.most)  # and what a pass kept past that was never text
        ends = torch.where(ended, whole.lengths, total[:, -1])
        accepted = total.minimum(ends[:, None]).diff(dim=1, prepend=torch.zeros_like(total[:, :1]))
        return Verified(**vars(whole), accepted=accepted, read=torch.stack(self.seen, 1)[:, : accepted.shape[1]])

    def _index(self, count: int) -> Tensor:
        return (self.start + self.written)[:, None] + torch.arange(count, device=self.text.device)


def pick_state(states: Tensor, place: Tensor) -> Tensor:
    """(batch, n, d) → (batch, d), each row's at its own place (batch,)."""
    return states.gather(1, place[:, None, None].expand(-1, 1, states.shape[-1]))[:, 0]


def left_aligned(ids: Tensor, mask: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Left-padded prompts moved to the front, and their lengths."""
    ids = ids.to(device)
    mask = torch.ones_like(ids) if mask is None else mask.to(device)
    if not mask[:, -1].all():
        raise ValueError("prompts must be padded on the left: their last token is what the head reads")
    if (mask[:, 1:] < mask[:, :-1]).any():
        raise ValueError("attention_mask leaves out tokens inside a prompt: only padding before it can be left out")
    lengths = mask.sum(1)
    shift = (ids.shape[1] - lengths)[:, None] + torch.arange(ids.shape[1], device=device)
    return ids.gather(1, shift.clamp_max(ids.shape[1] - 1)), lengths


def check_window(config: Any, length: int) -> None:
    """Rows of one cache look at all that is before them; a trunk that looks back so far only is another model."""
    config = config.get_text_config()
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if window and (kinds is None or "sliding_attention" in kinds) and length > window:
        raise ValueError(
            f"this trunk looks back {window} tokens at most: drafts are judged up to {window} tokens in all, not {length}"
        )
