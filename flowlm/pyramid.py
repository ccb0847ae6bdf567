"""Tokens with times of their own, in writing: each starts `delay` steps after the one before it (2407.01392, 2305.09515).

    t_l(m) = min(1, max(0, 1 − (m − delay·r_l)/n)),   r_l: the token's rank in the order,   m = 0 … n + delay·(L−1)

delay = 0 is a window refined as a whole, delay = n one token after the other, each in n steps; between them a front of
n/delay tokens moves through the window. dx_l = (x_l − E[x_0^l | x_t])/t_l·dt_l carries the law of x at one vector of times
to that at the next, whatever the order, so that with n every delay comes to the same law; a token that arrives is drawn
from its softmax and is known from then on. A jump of the two-time map goes straight from vector to vector. A causal network
does not hear from the tokens behind, which makes it exact at delay = n from left to right alone.
"""

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from flowlm.token_map import Known
from flowmap.rng import Rng

if TYPE_CHECKING:
    from flowlm.draft import Draft
    from flowlm.writing import Refinement

Order = Literal["left-to-right", "right-to-left", "random"]
ORDERS: tuple[Order, ...] = ("left-to-right", "right-to-left", "random")


def ranks(open_: Tensor, order: Order, rng: Rng) -> Tensor:
    """(batch, L) bool, the tokens to be written → (batch, L) int64, from 0 in the order they are started in. random: an
    order for each row."""
    batch, length = open_.shape
    place = torch.arange(length, device=open_.device).expand(batch, length)
    if order == "random":
        place = rng.uniform("order", batch, length, dtype=torch.float64).to(open_.device).argsort(1)
    elif order == "right-to-left":
        place = place.flip(1)
    turn = torch.gather(open_, 1, place).long().cumsum(1) - 1
    return torch.zeros_like(place).scatter_(1, place, turn)


def pyramid_times(rank: Tensor, steps: int, delay: int) -> Tensor:
    """(batch, L) → (M + 1, batch, L) float64, from 1 down to 0, where the last token takes M steps to arrive."""
    last = steps + delay * int(rank.max())
    passed = torch.arange(last + 1, device=rank.device).view(-1, *[1] * rank.ndim) - delay * rank
    return (1 - passed.double() / steps).clamp(0, 1)


def write_apart(draft: "Draft", x: Tensor, uniform: Tensor, rng: Rng, how: "Refinement") -> tuple[Tensor, Tensor]:
    """x: (batch, L, d), noise; uniform: (batch, L), of the tokens' draws. The draft's context says what is known.
    → (tokens, log_q), (batch, L) each."""
    context: Any = draft.context
    known, log_q = context.known, torch.zeros_like(uniform)
    times = pyramid_times(ranks(~known.at, how.order, rng), how.steps, how.delay).to(x)
    for t, s in pairwise(times):
        draft.know(known)
        answers = draft.answers(x, t, how.aim(t, s))
        drawn, log_p = how.warp.draw(draft.mixed(*answers), uniform)
        moved = draft.path.jump(x, draft.ends(answers, x), torch.where(t > 0, t, 1.0), s)
        x = torch.where((t > 0)[..., None], moved, x)
        arrives = ~known.at & (s == 0)
        log_q = torch.where(arrives, log_p.to(log_q), log_q)
        known = Known(torch.where(arrives, drawn, known.tokens), known.at | arrives)
    return known.tokens, log_q
