"""A head taught at the prefixes that it draws itself, which are those it is asked to go on from when it drafts.

    L = Σ_anchors E_{x_2..x_{K−1} ~ q(· | h, x_1)} Σ_k D(p(· | text, x_<k), q(· | h, x_<k))

x_1 is the text's, p the trunk, D of losses/distillation.py. No gradient goes through the draw (on-policy distillation,
2306.13649; of a draft, 2310.08461), so the expected gradient is the mean over prefixes, by q, of each one's own.

The trunk reads what was drawn behind the keys and values of the window that it has read already: each block sees the
window up to its anchor and itself, at the positions after it. Share s of the anchors costs s (K − 1) passes over as
many tokens as the window has, without gradient, and K draws of the head; where the window's states come from disk, one
pass over the window too, for its keys. Anchors whose block would reach past the window's last position are left out.
"""

from typing import Any

import torch
from torch import Tensor

from flowmap.rng import Rng
from flowmap.warp import Warp
from mtp.decoding.rows import check_window
from mtp.heads.base import BlockContext, JointHead
from mtp.losses.rollout import states_after


def choose(anchors: Tensor, share: float, block_size: int, rng: Rng) -> Tensor:
    """anchors: (batch, length) → those of them that are taught so."""
    length = anchors.shape[1]
    fits = torch.arange(length, device=anchors.device) + block_size <= length
    return anchors & fits & (rng.uniform("own", *anchors.shape).to(anchors.device) < share)


@torch.no_grad()
def draw(head: JointHead, ctx: BlockContext, first: Tensor, ends: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
    """(N, K) blocks from q at temperature 1, given x_1 (N,); and which positions 2..K have no end token before them,
    (N, K−1). rng: addressed by anchor. ends: end tokens."""
    tokens = head.sample(ctx, Warp(), rng, first=first).tokens
    return tokens, ~torch.isin(tokens[:, :-1], ends).cummax(1).values


@torch.no_grad()
def own_states(model: Any, cache: Any, anchors: Tensor, tokens: Tensor) -> Tensor:
    """The trunk's states at tokens (N, M), which follow the anchors (batch, length), N in all; (N, M, d). cache: the
    window's keys and values, which is written to."""
    batch, length = anchors.shape
    check_window(model.trunk.config, length + 1)  # a cache of short-sighted layers keeps one key less than they see
    row, place = torch.nonzero(anchors, as_tuple=True)
    slot = anchors.long().cumsum(1)[anchors] - 1
    # rows of fewer anchors read a few tokens that nobody asks for
    blocks = tokens.new_zeros(batch, int(anchors.sum(1).max()), tokens.shape[1])
    places = tokens.new_zeros(blocks.shape[:2])
    blocks[row, slot], places[row, slot] = tokens, place
    states = states_after(model, cache, length, places, blocks.flatten(0, 1)[:, None])
    return states.view(*blocks.shape, -1)[row, slot]
