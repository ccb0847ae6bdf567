"""From noise to tokens: the map's jumps on a falling grid of times, then one draw from the last softmax.

    z ~ N(0, ν²I),   x_{i+1} = X_{t_i→t_{i+1}}(x_i),   token ~ p_{t_{n−1}→0}(x_{n−1})         (math.md §5, sampler NLL)

With n steps the sampler makes the first n − 1, down to t = 1/n, and the softmax read there is the last: a two-time map
is told s = 0, a sampler of the local flow (euler, heun, ddim, ddpm) reads its own p_{t→t}.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowlm.token_map import Known, TokenMap
from flowmap.rng import Rng
from flowmap.samplers import SAMPLERS, STOCHASTIC, Guided, uniform_times
from flowmap.self_conditioning import TwoPass
from flowmap.warp import Warp

Watcher = Callable[[Tensor], None]
"""Hears at every call of the network the likeliest tokens as they stand, (batch, length)."""

LOCAL = ("euler", "heun", "ddim", "ddpm")
"""Samplers that never tell the network where they land."""


@dataclass(frozen=True)
class Written:
    """tokens: (batch, length), known ones included. log_q: (batch, length) nats of each under the law it was drawn from
    *given the noise*, 0 where it was known: no score of the text. nfe: network calls a sample."""

    tokens: Tensor
    log_q: Tensor
    nfe: int


class Draft(Guided):
    """A token map, or two passes of one, behind a sampler's calls. watch: hears every estimate."""

    def __init__(self, model: TokenMap | TwoPass, known: Known | None, watch: Watcher | None) -> None:
        super().__init__(model, known)
        self.passes, self.watch = getattr(model, "passes", 1), watch

    @torch.no_grad()
    def logits(self, x: Tensor, t: Tensor, s: Tensor, copies: int = 1) -> Tensor:
        """(batch, length, V)."""
        self.count(copies * self.passes)
        z = self.model.logits(x, t, s, self.repeated(self.context, len(x), copies))
        if self.watch is not None:
            self.watch(z.argmax(-1))
        return z

    def velocity(self, x: Tensor, t: Tensor, s: Tensor, copies: int = 1) -> Tensor:
        return self.path.secant(x, self.heading(x, t, s, copies), t)

    def jump(self, x: Tensor, t: Tensor, s: Tensor, told: Tensor | None = None) -> Tensor:
        return self.path.jump(x, self.heading(x, t, s if told is None else told), t, s)

    def heading(self, x: Tensor, t: Tensor, s: Tensor, copies: int = 1) -> Tensor:
        """g."""
        return self.path.expected(self.model.codebook, self.logits(x, t, s, copies), x).to(x.dtype)


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
    watch: Watcher | None = None,
) -> Written:
    """like: (batch, length, state size), whose shape, place and type the states have. warp: of the last softmax.
    self_conditioning: two passes an answer, counted."""
    if self_conditioning and model.network.read_self is None:
        raise ValueError("this network was built without self_conditioning: leave it out")
    if model.network.read.weight.dtype not in (torch.float32, torch.float64):
        raise ValueError("times and states are kept in fp32: load the model with dtype=torch.float32")
    draft = Draft(TwoPass(model) if self_conditioning else model, known, watch)
    logits = last_logits(draft, model.path.draw_noise(rng, "z", like), rng, steps, sampler)
    tokens, log_q = (warp or Warp()).draw(logits, rng.uniform("token", *logits.shape[:2]).to(logits))
    if known is not None:
        tokens, log_q = torch.where(known.at, known.tokens, tokens), log_q.masked_fill(known.at, 0.0)
    return Written(tokens, log_q, draft.nfe)


def last_logits(draft: Draft, z: Tensor, rng: Rng, steps: int, sampler: str = "pushforward") -> Tensor:
    """Those that the tokens are drawn from, (batch, length, V). z: noise, (batch, length, state size). rng: of samplers that
    draw more on the way."""
    if steps < 1:
        raise ValueError(f"{steps} steps: a text takes 1 at least")
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}: known are {', '.join(SAMPLERS)}")
    times = uniform_times(steps)
    if steps > 1:
        advance: Any = SAMPLERS[sampler]
        z = advance(draft, z, times[:-1], **({"rng": rng} if sampler in STOCHASTIC else {})).x
    t = times[-2].to(z).expand(len(z))
    return draft.logits(z, t, t if sampler in LOCAL else torch.zeros_like(t))
