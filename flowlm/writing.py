"""From noise to tokens: the map's jumps on a falling grid of times, then one draw from the last softmax.

    z ~ N(0, ν²I),   x_{i+1} = X_{t_i→t_{i+1}}(x_i),   token ~ p_{t_{n−1}→0}(x_{n−1})         (math.md §5, sampler NLL)

With n steps the sampler makes the first n − 1, down to t = 1/n, and the softmax read there is the last: a two-time map
is told s = 0, a sampler of the local flow (euler, heun, ddim, ddpm) reads its own p_{t→t}. A contextual decoder is given
where the last jump lands instead, x̂ = g of that softmax, and writes by `rounding`: as many calls of the map, and a call of its
own a token; so is a map whose codes have no table, which reads tokens there in one call more (`latent_map`). The decoder
`nearest` takes the code next to x̂ and draws nothing. A window is written as a whole, or block after block, each behind the
tokens of those before it (`blocks`); all tokens at once, or each some steps after the one before (`pyramid`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from flowlm.blocks import Blocks
from flowlm.draft import Draft, Watcher
from flowlm.pyramid import ORDERS, Order, write_apart
from flowlm.token_map import Known, TokenMap
from flowmap.rng import Rng
from flowmap.samplers import PARALLEL, SAMPLERS, STOCHASTIC, uniform_times
from flowmap.self_conditioning import TwoPass
from flowmap.warp import Warp

LOCAL = ("euler", "heun", "ddim", "ddpm", "picard")
"""Samplers that never tell the network where they land."""

CARRY = ("pushforward", "restart")
"""Those whose jumps hear what the one before them expected, of a map that was taught so: along one way, or behind fresh noise, where what is
carried is no more than a hint."""
DEAF = tuple(name for name in SAMPLERS if name not in (*LOCAL, *CARRY))
"""Those that jump and tell nothing of the jump before: not of maps that were taught to hear."""

APART = ("pushforward", "ddim")
"""Those for tokens with times of their own."""


@dataclass(frozen=True)
class Written:
    """tokens: (batch, length), known ones included. log_q: (batch, length) nats of each under the law it was drawn from
    *given the noise*, 0 where it was known or nothing was drawn: no score of the text. calls: (batch,) network calls of each row; what stands
    before a block is read in the first call that refines it. nfe: calls of the row that took most. decoder_calls: of a decoder
    apart from the map, the same for every row."""

    tokens: Tensor
    log_q: Tensor
    calls: Tensor
    decoder_calls: int = 0

    @property
    def nfe(self) -> int:
        return int(self.calls.max())


@dataclass(frozen=True)
class Refinement:
    """From noise to the tokens of a window or a block. warp: of the last softmax, or of the decoder's. delay: steps between the
    starts of two tokens, in this order; 0: all at once. decoder: of `rounding.DECODERS`. times: falling from 1, one a step;
    default evenly spaced. renoise: of the sampler restart."""

    steps: int = 1
    sampler: str = "pushforward"
    warp: Warp = field(default_factory=Warp)
    delay: int = 0
    order: Order = "left-to-right"
    decoder: str = "softmax"
    times: tuple[float, ...] | None = None
    renoise: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"{self.steps} steps: a text takes 1 at least")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {self.sampler!r}: known are {', '.join(SAMPLERS)}")
        if not 0 < self.renoise <= 1:
            raise ValueError(f"renoise {self.renoise}: a share of the noise, above 0 and at most 1")
        if self.renoise < 1 and self.sampler != "restart":
            raise ValueError(f"renoise {self.renoise} is of the sampler restart, not of {self.sampler}: leave it out")
        if self.delay < 0 or self.order not in ORDERS:
            raise ValueError(
                f"delay {self.delay}, {self.order!r}: 0 steps or more, in the order of {', '.join(ORDERS)}"
            )
        if self.times is not None and len(self.times) != self.steps:
            raise ValueError(f"{len(self.times)} times for {self.steps} steps: one for each")
        if self.delay and self.sampler not in APART:
            raise ValueError(f"tokens that start apart are moved by {' or '.join(APART)}, not by {self.sampler}")

    def __call__(self, draft: Draft, like: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """like: (rows, n, state size) → (tokens, log_q), (rows, n) each."""
        x = draft.path.draw_noise(rng, "z", like)
        uniform = rng.uniform("token", *like.shape[:2]).to(x)
        if self.delay:
            return write_apart(draft, x, uniform, rng, self)
        if self.decoder == "contextual":
            return self.round(draft, draft.heading(*self.approach(draft, x, rng), heated=False), uniform)
        if self.decoder == "nearest":
            tokens = draft.model.codebook.decode(draft.heading(*self.approach(draft, x, rng), heated=False))
            return tokens, torch.zeros_like(uniform)
        if draft.finishes:
            return self.warp.draw(draft.read(draft.heading(*self.approach(draft, x, rng))), uniform)
        return self.warp.draw(self.last_logits(draft, x, rng), uniform)

    def round(self, draft: Draft, landed: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """landed: (rows, n, state size), x̂."""
        model, known = draft.model, draft.context.known if draft.context is not None else nothing(landed)
        states = landed / model.data_scale
        tokens, log_q, calls = model.rounding.write(states, known, model.clean_states, self.warp, uniform)
        draft.decoder_calls += calls
        return tokens, log_q

    def last_logits(self, draft: Draft, z: Tensor, rng: Rng) -> Tensor:
        """Those that the tokens are drawn from where all start at once, (rows, n, V). z: noise, (rows, n, state size). rng: of
        samplers that draw more on the way."""
        return draft.logits(*self.approach(draft, z, rng))

    def approach(self, draft: Draft, z: Tensor, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
        """Where the last call is made: the state, its time, and what is told of the time it lands at."""
        times = uniform_times(self.steps)[:-1] if self.times is None else torch.tensor(self.times, dtype=torch.float64)
        draft.carrying = self.sampler in CARRY and draft.passes == 1 and getattr(draft.model, "carries", False)
        draft.remembering = draft.carrying and self.steps <= draft.model.jumps
        if self.steps > 1:
            advance: Any = SAMPLERS[self.sampler]
            told: dict[str, Any] = {"rng": rng} if self.sampler in STOCHASTIC else {}
            told |= {"renoise": self.renoise} if self.renoise < 1 else {}
            z = advance(draft, z, times, **told).x
        t = times[-1].to(z).expand(len(z))
        return z, t, self.aim(t, torch.zeros_like(t))

    def aim(self, t: Tensor, s: Tensor) -> Tensor:
        """What the network is told of the time it lands at."""
        return t if self.sampler in LOCAL else s


def write(
    model: TokenMap,
    like: Tensor,
    rng: Rng,
    *,
    known: Known | None = None,
    steps: int = 1,
    sampler: str = "pushforward",
    warp: Warp | None = None,
    self_conditioning: bool = False,
    guidance: float = 1.0,
    watch: Watcher | None = None,
    delay: int = 0,
    order: Order = "left-to-right",
    decoder: str = "softmax",
    times: tuple[float, ...] | None = None,
    renoise: float = 1.0,
    score_temperature: float = 1.0,
    block: int | None = None,
    ends: Sequence[int] = (),
    told: Watcher | None = None,
    cached: bool = True,
) -> Written:
    """like: (batch, length, state size), whose shape, place and type the states have. The next five, delay, order, decoder,
    times and renoise as in `Refinement`; guidance and score_temperature as in `Draft`.
    block: tokens of a block; None: the window is refined as a whole. The rest is for blocks, as in `write_blocks`.
    watch: hears at every call of the network the likeliest tokens, of the window as far as it has been come to."""
    if self_conditioning and model.network.read_self is None:
        raise ValueError("this network was built without self_conditioning: leave it out")
    how = Refinement(steps, sampler, warp or Warp(), delay, order, decoder, times, renoise)
    if next(model.parameters()).dtype not in (torch.float32, torch.float64):
        raise ValueError("times and states are kept in fp32: load the model with dtype=torch.float32")
    if not score_temperature > 0:
        raise ValueError(f"score temperature {score_temperature} must be above 0; 1 is none")
    if score_temperature != 1 and model.finishes:
        raise ValueError(f"score temperature {score_temperature} is of codes that have a table: leave it out")
    asked: Any = TwoPass(model) if self_conditioning else model
    if sampler in PARALLEL and block is not None:
        raise ValueError(f"sampler {sampler} asks for all steps at once, and blocks keep a cache of one: take another")
    if guidance != 1 and block is not None:
        raise ValueError(f"guidance {guidance}: what stands before a block is always shown, leave it out for blocks")
    if block is None:
        draft = Draft(
            asked,
            nothing(like) if known is None and (delay or guidance != 1) else known,
            watch,
            guidance,
            score_temperature,
        )
        tokens, log_q = how(draft, like, rng)
        if told is not None:
            told(tokens)
        return Written(tokens, log_q, torch.full((len(like),), draft.nfe), draft.decoder_calls)

    def refine(context: Blocks, rows: Tensor, here: slice, own: Rng) -> tuple[Tensor, Tensor, int]:
        draft = Draft(asked, context, behind(context, watch), score_temperature=score_temperature)
        return *how(draft, like[rows, here], own), draft.nfe

    return write_blocks(known or nothing(like), rng, block, refine, ends, told, cached)


Refine = Callable[[Blocks, Tensor, slice, Rng], tuple[Tensor, Tensor, int]]
"""(what stands before the block, rows of the batch, places of the block, their randomness) → tokens, log_q and calls."""


def write_blocks(
    known: Known,
    rng: Rng,
    block: int,
    refine: Refine,
    ends: Sequence[int] = (),
    told: Watcher | None = None,
    cached: bool = True,
) -> Written:
    """Block after block, each refined behind what stands before it. ends: a row is done with the block in which it writes
    one of these behind its last known token; what would follow is 0. told: hears the window after each block, up to its
    end. cached: False reads all that stands before a block in every call, to the same tokens."""
    batch, length = known.at.shape
    if block < 1 or length % block:
        raise ValueError(f"blocks of {block} do not divide a window of {length}")
    tokens, log_q = known.tokens.masked_fill(~known.at, 0), known.at.new_zeros(batch, length, dtype=torch.float32)
    calls, rows = known.at.new_zeros(batch, dtype=torch.long), torch.arange(batch, device=known.at.device)
    open_ = torch.arange(length, device=rows.device) > last_known(known.at)[:, None]
    cache = DynamicCache() if cached else None
    for number, first in enumerate(range(0, length, block)):
        here = slice(first, first + block)
        if known.at[rows, here].all():
            continue
        context = Blocks(tokens[rows, :first], torch.full_like(rows, block), known[rows, here], first, cache)
        own = rng.parts(length // block)[rows.to(rng.device) * (length // block) + number]
        tokens[rows, here], log_q[rows, here], took = refine(context, rows, here, own)
        calls[rows] += took
        if told is not None:
            told(tokens[rows, : here.stop])
        done = (torch.isin(tokens[rows, here], torch.tensor(ends, device=rows.device)) & open_[rows, here]).any(1)
        if done.any():
            rows = rows[~done]
            if not len(rows):
                break
            if cache is not None:
                cache.batch_select_indices(torch.nonzero(~done)[:, 0])
    return Written(tokens, log_q, calls)


def behind(context: Blocks, watch: Watcher | None) -> Watcher | None:
    """Who hears a block is told what stands before it too."""
    return None if watch is None else lambda now: watch(torch.cat([context.tokens, now], 1))


def nothing(like: Tensor) -> Known:
    """Of windows of these states."""
    at = torch.zeros(like.shape[:2], dtype=torch.bool, device=like.device)
    return Known(at.long(), at)


def last_known(at: Tensor) -> Tensor:
    """(batch, n) bool → (batch,), the place of each row's last known token; −1: none."""
    return (at * torch.arange(1, at.shape[1] + 1, device=at.device)).amax(1) - 1
