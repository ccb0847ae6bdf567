"""The trunk after blocks that a head has drawn: states at x_1..x_M behind every anchor's own prefix, in one pass.

The drawn blocks of a window are appended to it, one after another, and each looks at the window up to its anchor and at
itself: with the window's keys and values at hand, A anchors and n blocks at each cost A·n·M tokens of a pass, and no
prefix is copied or read again.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowmap.rng import Rng


@dataclass(frozen=True)
class Anchors:
    """Positions that blocks hang on, A a window. place: (batch, A). weight: (batch, A), how many of the window's anchors
    each stands for, 0 where a window has fewer than A."""

    place: Tensor
    weight: Tensor

    @classmethod
    def pick(cls, anchors: Tensor, count: int, rng: Rng) -> "Anchors":
        """`count` of each window's anchors, (batch, length) True, uniformly and without replacement."""
        keys = rng.uniform("anchors", *anchors.shape).to(anchors.device).masked_fill(~anchors, -1.0)
        place = keys.topk(min(count, anchors.shape[1])).indices
        taken = anchors.gather(1, place)
        return cls(place, taken * (anchors.sum(1) / taken.sum(1).clamp_min(1))[:, None])

    def of(self, x: Tensor) -> Tensor:
        """x: (batch, length, *rest) → its entries there, (batch · A, *rest)."""
        return x[torch.arange(len(x), device=x.device)[:, None], self.place].flatten(0, 1)

    def rng(self, rng: Rng, length: int) -> Rng:
        """The randomness of each anchor: position i of sample j is sample j·length + i."""
        samples = torch.arange(len(self.place)) if rng.samples is None else rng.samples
        address = samples.to(self.place.device)[:, None] * length + self.place
        return Rng(rng.seed, address.flatten(), rng.batch)


@torch.no_grad()
def states_after(model: Any, cache: Any, length: int, place: Tensor, blocks: Tensor) -> Tensor:
    """cache: the trunk's keys and values of windows of `length` tokens, which this lengthens. place: (batch, A).
    blocks: (batch · A, n, M) tokens → (batch · A, n, M, d)."""
    batch, num = len(place), blocks.shape[1] * blocks.shape[2] * place.shape[1]
    device = blocks.device
    step = torch.arange(blocks.shape[2], device=device)
    position = (place[:, :, None, None] + 1 + step).expand(-1, -1, blocks.shape[1], -1).reshape(batch, num)
    own = torch.arange(num // len(step), device=device).repeat_interleave(len(step))
    anchor = position - step.repeat(num // len(step))  # of each appended token, one after the place it hangs on
    inside = (own[:, None] == own) & torch.ones(num, num, dtype=torch.bool, device=device).tril()
    before = torch.arange(length, device=device) < anchor[..., None]
    seen = torch.cat([before, inside.expand(batch, -1, -1)], 2)[:, None]
    dtype = model.get_input_embeddings().weight.dtype
    mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, torch.finfo(dtype).min)
    states, _ = model.states(blocks.reshape(batch, num), mask, position, cache, True)
    return states.reshape(*blocks.shape, -1)
