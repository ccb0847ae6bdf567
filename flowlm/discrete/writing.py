"""Tokens from the baselines: one a pass from left to right, or blanks filled in a number of passes.

causal      x^l ~ p(· | x^{<l}), each pass behind the cache of those before
ancestral   the grid 1 = t_0 > … > t_K = 0: a blank is filled on the way from t to s with chance (t − s)/t, which is to
            say in pass ⌊K u⌋ for one u ~ U[0, 1) of its own                                            (2406.07524)
even        the same in equal shares: of n blanks the one of random rank r is filled in pass ⌊K r/n⌋. With K = n passes
            no two are filled together, and the law is that of the conditionals themselves
"""

from typing import Any

import torch
from torch import Tensor

from flowlm.discrete.masked import random_order
from flowlm.draft import Watcher
from flowlm.token_map import Known, TokenContext
from flowlm.writing import Written
from flowmap.rng import Rng
from flowmap.warp import Warp

FILLING = ("ancestral", "even")
"""Samplers of masked diffusion."""


@torch.no_grad()
def write_causal(model: Any, known: Known, rng: Rng, *, warp: Warp | None = None, end: int | None = None) -> Written:
    """known: (B, N), a beginning of each row. end: places from there on are left as they are. log_q of the whole is exact."""
    if bool((known.at.long().diff(dim=1) > 0).any()):
        raise ValueError("an autoregressive model cannot fill gaps: what is known must be the beginning of each row")
    from transformers import DynamicCache

    warp, tokens, cache = warp or Warp(), known.tokens.clone(), DynamicCache()
    end, log_q = tokens.shape[1] if end is None else end, torch.zeros(tokens.shape, device=tokens.device)
    noise = rng.uniform("token", *tokens.shape).to(log_q)
    first = int(known.at.sum(1).min())
    ids = model.late(tokens[:, :first])
    for place in range(first, end):
        drawn, log_p = warp.draw(model.ahead(ids, cache)[:, -1], noise[:, place])
        told = known.at[:, place]
        tokens[:, place] = torch.where(told, known.tokens[:, place], drawn)
        log_q[:, place] = log_p.masked_fill(told, 0.0)
        ids = tokens[:, place : place + 1]
    return Written(tokens, log_q, torch.full((len(tokens),), max(0, end - first)))


@torch.no_grad()
def write_masked(
    model: Any,
    known: Known,
    rng: Rng,
    *,
    steps: int = 1,
    sampler: str = "ancestral",
    warp: Warp | None = None,
    watch: Watcher | None = None,
    context: TokenContext | None = None,
) -> Written:
    """known: (B, N), wherever. steps: passes, K. context: what stands before a block; None: a window by itself."""
    if steps < 1:
        raise ValueError(f"{steps} steps: a text takes 1 at least")
    if sampler not in FILLING:
        raise ValueError(f"unknown sampler {sampler!r}: known are {', '.join(FILLING)}")
    warp, open_ = warp or Warp(), ~known.at
    turn = turns(rng.uniform("turn", *open_.shape).to(open_.device), open_, steps, sampler)
    x = known.tokens.masked_fill(open_, model.blank)
    log_q = torch.zeros(x.shape, device=x.device)
    noise = rng.uniform("token", *x.shape).to(log_q)
    for step in range(steps):
        logits = model.logits(x, torch.full((len(x),), 1 - step / steps, device=x.device), context)
        if watch is not None:
            watch(logits.argmax(-1))
        drawn, log_p = warp.draw(logits, noise)
        due = open_ & (turn == step)
        x, log_q = torch.where(due, drawn, x), torch.where(due, log_p, log_q)
    return Written(x, log_q, torch.full((len(x),), steps))


def turns(u: Tensor, open_: Tensor, steps: int, sampler: str) -> Tensor:
    """(B, N): the pass that fills each open place. u: uniforms of the same shape."""
    if sampler == "ancestral":
        return (u.double() * steps).long()  # in fp32 it could round up to K
    return random_order(u, open_) * steps // open_.sum(1, keepdim=True).clamp_min(1)
