"""Does a model of blocks know them by heart? What a token costs by the place of its block in the window, in training windows and in
held-out ones.

Blocks see a clean text before them and few tokens of their own, so one that stands often in the data is soon learned whole, and the
first have nothing else to go by. A cost that falls on training windows and rises on held-out ones is that, block by block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowlm.blocks import Blocks
from flowlm.discrete.masked import MaskedMap, blank_nll, by_time
from flowmap.objectives.tokens import TokenStates
from flowmap.objectives.tokens.base import each_cross_entropy
from flowmap.rng import Rng

LEAST = 1e-3
"""The earliest time at which a denoiser is asked."""


@torch.no_grad()
def cost_by_block(model: Any, windows: Mapping[str, TokenStates]) -> dict[str, float]:
    """By the name of the windows and the block's number, from 1: nats a token at times drawn evenly, one for each block; of
    masked diffusion nats a blank. windows: cut into blocks of one length, a level each. The same noise every time."""
    device = next(model.parameters()).device
    found = {}
    for name, states in windows.items():
        states = states.to(device)
        assert states.levels is not None
        nll, counted = cost_of_tokens(model, states, Rng(0, torch.arange(states.size, device=device)))
        if states.scored is not None:
            counted = counted & states.scored
        for block in range(int(states.levels.max()) + 1):
            here = counted & (states.levels == block)
            if here.any():
                found[f"{name}_block_{block + 1}"] = float(nll[here].mean())
    return found


def in_blocks(states: TokenStates, lengths: Sequence[int]) -> TokenStates:
    """Windows cut into blocks of the longest of these lengths of which three or more fill one, a level each."""
    assert isinstance(states.context, Blocks)
    window = states.tokens.shape[1]
    size = torch.full((states.size,), max((n for n in lengths if 3 * n <= window), default=window))
    place = torch.arange(states.tokens.shape[1]).expand_as(states.tokens)
    return replace(states, context=replace(states.context, size=size), levels=place // size[:, None])


def cost_of_tokens(model: Any, states: TokenStates, rng: Rng) -> tuple[Tensor, Tensor]:
    """(nats, whether it counts), (B, N) each."""
    if isinstance(model, MaskedMap):
        blanks = by_time(rng, "watch", states)
        return blank_nll(model, states, blanks), blanks.at
    own, count = states.draws(rng)
    t = states.at_tokens(own.uniform("watch/t", count)).to(states.tokens.device).clamp_min(LEAST)
    x_0 = model.codebook.encode(states.tokens)
    x_t = model.path.noise(x_0, model.path.draw_noise(rng, "watch/eps", x_0), t)
    nll = each_cross_entropy(model.logits(x_t, t, t, states.context), states.tokens)
    return nll, torch.ones_like(states.tokens, dtype=torch.bool)
