"""What a window costs: exact for the autoregressive model, for masked diffusion its NELBO (see `masked`).

By Monte Carlo, whose error is known from independent repeats, or over all 2^N − 1 sets of blank places, where a set of k
has the weight ∫ t^{k−1} (1 − t)^{N−k} dt = 1/(k·C(N, k)). Run it on a model in eval mode. Shapes as in `base`.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowlm.discrete.base import token_nll, unknown
from flowlm.discrete.causal import CausalMap
from flowlm.discrete.masked import Blanks, MaskedMap, blank_nll, by_count, by_time
from flowmap.objectives.tokens import TokenStates
from flowmap.rng import Rng

MOST = 12
"""Tokens of a window whose every set of blanks is looked at."""


@dataclass(frozen=True)
class WindowScore:
    """repeats: (R, B) float64 nats of each window, independent of each other given the window."""

    repeats: Tensor
    kind: Literal["exact", "bound"]

    @property
    def nats(self) -> Tensor:
        """(B,)."""
        return self.repeats.mean(0)

    @property
    def stderr(self) -> Tensor:
        """(B,): of nats, given the windows; 0 where nothing was drawn."""
        if len(self.repeats) == 1:
            return torch.zeros_like(self.nats)
        return self.repeats.std(0) / len(self.repeats) ** 0.5


@torch.no_grad()
def exact_nll(model: CausalMap, batch: TokenStates) -> WindowScore:
    nll = token_nll(model.logits(batch.tokens), batch.tokens, unknown(batch))
    return WindowScore(nll.double().sum(1)[None], "exact")


@torch.no_grad()
def nelbo(model: MaskedMap, batch: TokenStates, rng: Rng, draws: int = 16) -> WindowScore:
    """draws: independent ones of what is blank, 2 at least, each a pass. rng: of the batch's rows."""
    if draws < 2:
        raise ValueError(f"{draws} draws: their error is known from 2 at least")
    law, repeats = by_time if model.time_conditioning else by_count, []
    for draw in range(draws):
        blanks = law(rng, f"blank-{draw}", batch)
        repeats.append(blanks.total(blank_nll(model, batch, blanks).double()))
    return WindowScore(torch.stack(repeats), "bound")


@torch.no_grad()
def nelbo_in_full(model: MaskedMap, batch: TokenStates) -> WindowScore:
    """The bound itself, of short windows."""
    rows, length = batch.tokens.shape
    if model.time_conditioning:
        raise ValueError("a network that is told the time has another law at every t: estimate its bound by nelbo")
    if length > MOST:
        raise ValueError(f"{length} tokens have 2^{length} sets of blanks: up to {MOST} are looked at, take nelbo")
    total, open_ = torch.zeros(rows, dtype=torch.float64, device=batch.tokens.device), unknown(batch)
    for chosen in range(1, 2**length):
        at = torch.tensor([bool(chosen >> place & 1) for place in range(length)], device=open_.device)
        k = int(at.sum())
        one = total.new_ones(rows)
        blanks = Blanks(at & open_, one.float(), one)
        total = total + blanks.total(blank_nll(model, batch, blanks).double()) / (k * math.comb(length, k))
    return WindowScore(total[None], "bound")
