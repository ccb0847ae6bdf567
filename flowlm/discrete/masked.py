"""Masked diffusion with the log-linear schedule (MDLM, 2406.07524): t is the chance that a token is blanked out.

    −log P(x) ≤ E_t [ 1/t · Σ_{l blank in x_t} −log p_θ(x^l | x_t) ]                              (NELBO; t = 1 is noise)
             = Σ_k 1/k · mean over sets S of k places of Σ_{l∈S} −log p_θ(x^l | x^{∖S})           (the integral over t done)

The second line holds where the network is not told t, as in the paper; it is what an order drawn at random costs an
autoregressive model of any order (2110.02037). The network never writes the blank (zero masking probability), and what
is not blank stays (carry-over unmasking). Known tokens are never blanked. With blocks as context (BD3-LM, 2503.09573) every
block has a t of its own behind the clean text before it, and the bound is the sum of theirs. Shapes as in `base`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowlm.discrete.base import DiscreteMap, token_nll, unknown
from flowlm.token_map import Known, TokenContext
from flowmap.backbone import Backbone
from flowmap.codebook import Codebook
from flowmap.objectives.base import Loss, Objective
from flowmap.objectives.tokens import TokenStates
from flowmap.path import expand
from flowmap.rng import Rng


class MaskedMap(DiscreteMap):
    """time_conditioning: tell the network t."""

    def __init__(self, network: Backbone, codebook: Codebook, time_conditioning: bool = False) -> None:
        super().__init__(network, codebook)
        self.time_conditioning = time_conditioning

    def logits(self, x_t: Tensor, t: Tensor, context: TokenContext | None = None) -> Tensor:
        """Of every token given x_t, (B, N, V), certain of what is not blank. x_t: (B, N) from 0 to V; t: (B,) or (B, N)."""
        x_t = seen(x_t, context)
        return Known(x_t, x_t != self.blank).settle(self.denoise(x_t, t, context))

    def features(self, tokens: Tensor, at: Tensor | None = None) -> Tensor:
        """What the network makes of whole windows, (B, N, width), as of an encoder. at: where tokens are known, blanks stand
        elsewhere; None: everywhere."""
        ids = tokens if at is None else tokens.masked_fill(~at, self.blank)
        now = torch.zeros(len(ids), device=ids.device)
        return self.network.features(self.clean_states(ids), now, now)

    def denoise(self, x_t: Tensor, t: Tensor, context: TokenContext | None = None) -> Tensor:
        """The same before anything is carried over: what it says of places that are not blank means nothing."""
        return self.read(x_t, t if self.time_conditioning else t.new_zeros(len(t)), context)


def seen(x_t: Tensor, context: TokenContext | None) -> Tensor:
    """With the known tokens in their places."""
    return x_t if context is None else torch.where(context.known.at, context.known.tokens, x_t)


@dataclass(frozen=True)
class Blanks:
    """at: (B, N) bool, the blank places; t: (B,), or (B, N) of each place; weight: in its form, so that
    E[Σ_{l blank} weight · nll] is the NELBO."""

    at: Tensor
    t: Tensor
    weight: Tensor

    def total(self, nll: Tensor) -> Tensor:
        """(B, N) nats of the blank places → (B,)."""
        return (expand(self.weight, nll) * nll).sum(1)


Law = Callable[[Rng, str, TokenStates], Blanks]
"""(rng, name, windows) → a draw of what is blank."""


def by_time(rng: Rng, name: str, batch: TokenStates, least: float = 0.0, most: float = 1.0) -> Blanks:
    """The first line: t ~ U(least, most], every open place blank with chance t. Less than all times are a bound of one token alone,
    whatever t; of more they train the middle (BD3-LM's clipped schedule)."""
    open_ = unknown(batch)
    own, count = batch.draws(rng)
    place = own.place(f"{name}/t", count) if own.spread else own.uniform(f"{name}/t", count)
    t = batch.at_tokens((most - (most - least) * place).float().to(open_.device))
    u = rng.uniform(name, *open_.shape).to(open_.device)
    return Blanks((u < expand(t, u)) & open_, t, 1 / t)


def by_count(rng: Rng, name: str, batch: TokenStates) -> Blanks:
    """The second: of n open places k ~ U{1..n}, any set of them, in every block if there are. Far less noisy: no weight is
    above n."""
    open_ = unknown(batch)
    own, draws = batch.draws(rng)
    v = batch.at_tokens(own.place(f"{name}/k", draws).to(open_.device))
    level = torch.zeros_like(batch.tokens) if batch.levels is None else batch.levels.to(open_.device)
    count = torch.zeros_like(level).scatter_add(1, level, open_.long()).gather(1, level)
    k = (expand(v, open_) * count).long() + 1
    rank = random_order(rng.uniform(name, *open_.shape).to(open_.device), open_, level)
    return Blanks((rank < k) & open_, (k / count.clamp_min(1)).clamp_max(1), count / k)


def random_order(u: Tensor, open_: Tensor, level: Tensor | None = None) -> Tensor:
    """Ranks of the open places by their uniforms, from 0, in each level; the others come after them. (B, N) each."""
    key = u.double().masked_fill(~open_, 2.0)
    if level is None:
        return key.argsort(1).argsort(1)
    rank = (key + 4 * level).argsort(1).argsort(1)
    return rank - (level[:, :, None] > level[:, None]).sum(2)


LAWS: dict[str, Law] = {"time": by_time, "count": by_count}


class MaskedDiffusion(Objective):
    """Nats a token, the bound. blanks: the law that they are drawn from, time (as published) or count. time_conditioning:
    of the map that is trained. least, most: of the times, where not all are trained; the loss is then no bound."""

    spreads = True

    def __init__(
        self, blanks: str = "time", time_conditioning: bool = False, least: float = 0.0, most: float = 1.0
    ) -> None:
        super().__init__()
        if blanks not in LAWS:
            raise ValueError(f"blanks {blanks!r}: known are {', '.join(LAWS)}")
        if blanks == "count" and time_conditioning:
            raise ValueError("blanks by count leave no time to tell the network: take blanks by time")
        if not 0 <= least < most <= 1 or (blanks == "count" and (least, most) != (0, 1)):
            raise ValueError(
                f"blanks by {blanks} from {least} to {most}: times rise from 0 to 1, and counts are not cut"
            )
        self.law: Law = LAWS[blanks] if blanks == "count" else partial(by_time, least=least, most=most)
        self.time_conditioning = time_conditioning

    def forward(self, model: Any, batch: TokenStates, *, teacher: Any = None, rng: Rng, step: int) -> Loss:
        blanks = self.law(rng, "blank", batch)
        nll = blank_nll(model, batch, blanks)
        metrics = {"cross_entropy": (nll.sum().detach(), blanks.at.sum().float())}
        return Loss(blanks.total(nll).sum(), batch.count, metrics)


def blank_nll(model: Any, batch: TokenStates, blanks: Blanks) -> Tensor:
    """−log p(x^l | x_t) of the blank places, 0 elsewhere, (B, N)."""
    x_t = batch.tokens.masked_fill(blanks.at, model.blank)
    return token_nll(model.denoise(x_t, blanks.t, batch.context), batch.tokens, blanks.at)
