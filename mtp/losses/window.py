"""Windows of text that the trunk has read, and the anchors in them: what every loss of a head is a function of."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flowmap.rng import Rng
from mtp.heads.base import BlockContext


@dataclass(frozen=True)
class Window:
    """model: trunk and head. hidden: (batch, length, d), the trunk's states; cache: its keys and values, or None.
    tokens: (batch, ≥ length). targets, mask: (batch, length, K), the block after every position and what of it counts.
    anchors: (batch, length), where blocks hang, N in all. rng: of the slice's samples."""

    model: Any
    hidden: Tensor
    cache: Any
    tokens: Tensor
    targets: Tensor
    mask: Tensor
    anchors: Tensor
    rng: Rng

    def among(self, anchors: Tensor) -> "Window":
        """The same with these anchors instead."""
        return replace(self, anchors=anchors)

    @property
    def length(self) -> int:
        return self.hidden.shape[1]

    @property
    def block_size(self) -> int:
        return self.targets.shape[2]

    @property
    def modelled(self) -> int:
        """Positions of a block that the head models, K − 1."""
        return self.block_size - 1

    def context(self, own_block: bool = True) -> BlockContext:
        """Of the anchors. own_block: the blocks asked about are the text's own."""
        return self.model.anchored(self.hidden, self.tokens, self.anchors, own_block)

    def blocks(self) -> tuple[Tensor, Tensor]:
        """The text's blocks there and what of them counts, (N, K) each."""
        return self.targets[self.anchors], self.mask[self.anchors]

    def next_states(self) -> tuple[Tensor, Tensor]:
        """The trunk's states at x_1..x_{K−1} of every anchor's block, (N, K−1, d), detached, and which of them the window
        holds, (N, K−1)."""
        row, place = torch.nonzero(self.anchors, as_tuple=True)
        index = place[:, None] + 1 + torch.arange(self.modelled, device=place.device)
        return self.hidden.detach()[row[:, None], index.clamp_max(self.length - 1)], index < self.length

    def anchor_rng(self) -> Rng:
        """The randomness of each anchor: position i of sample j is sample j·length + i."""
        samples = torch.arange(len(self.anchors)) if self.rng.samples is None else self.rng.samples
        place = torch.arange(self.length, device=self.anchors.device)
        address = samples.to(place.device)[:, None] * self.length + place
        return Rng(self.rng.seed, address[self.anchors], self.rng.batch)

    def ends(self) -> tuple[int, ...]:
        """End tokens by the model's config, which names none, one or several."""
        end = self.model.config.eos_token_id
        return () if end is None else (end,) if isinstance(end, int) else tuple(end)
