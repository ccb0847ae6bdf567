"""Contextual autoregressive rounding: tokens from finished states, each behind those written before it (CoDAR, 2603.02547).

    P(x | x̂) = Π_l p_φ(x^l | x^{<l}, x̂),   x̂ = g_{t→s}(x_t), where the last jump of a sampler lands

A softmax on every state draws tokens apart: where x̂ lies between the codes of two texts it mixes them. This decoder looks at
all of x̂ and at its own earlier tokens, so that what the states leave open is decided once. In one pass of the backbone
stand [states | places to be said]; a place reads its own state and the code of the token before it, and a mask of

    states look at all states,    a place looks at all states and at places up to itself

makes it causal. Written token by token behind a cache: the loop is over places, the batch goes along.
Trained beside the map on what it would leave of true text, t ~ U[t_min, latest], no gradient into x̂:

    L = Σ_l −log p_φ(x^l | x^{<l}, sg g_{t→s}(α_t c_x + σ_t ε))
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import DynamicCache

from flowlm.discrete.base import token_nll, unknown
from flowlm.token_map import Known, Reader
from flowmap.backbone import Backbone
from flowmap.codebook import in_full
from flowmap.objectives.base import Loss, Objective
from flowmap.objectives.tokens import TokenStates
from flowmap.rng import Rng
from flowmap.self_conditioning import TwoPass
from flowmap.warp import Warp

DECODERS = ("softmax", "contextual", "nearest")
"""How tokens are read off at the end: each from its own softmax, by this decoder, or each by the code nearest to x̂."""


class Rounding(nn.Module):
    """network: reads states of d numbers, and through self_cond as many of the token before; writes V logits."""

    def __init__(self, network: Backbone) -> None:
        super().__init__()
        self.network = network

    def logits(self, states: Tensor, before: Tensor) -> Tensor:
        """Of every token given all states and the tokens before it, (B, N, V). states: (B, N, d), of unit deviation; before:
        (B, N, d), the codes of the tokens one place earlier, 0 at the first."""
        return self._say(states, before, 0)

    def write(
        self, states: Tensor, known: Known, read: Reader, warp: Warp, uniform: Tensor
    ) -> tuple[Tensor, Tensor, int]:
        """states as above; uniform: (B, N), one a token. → (tokens, log_q), (B, N) each, and the calls of this network: a
        place each from the first that some row has to write."""
        tokens, log_q = known.tokens.masked_fill(~known.at, 0), torch.zeros_like(uniform)
        length, first = tokens.shape[1], first_open(known.at)
        cache, before = DynamicCache(), shifted(read(tokens[:, :first]), first + 1)
        for place in range(first, length):
            logits = self._say(states, before, 0 if place == first else place, cache)[:, -1]
            drawn, log_p = warp.draw(logits, uniform[:, place])
            told = known.at[:, place]
            tokens[:, place] = torch.where(told, known.tokens[:, place], drawn)
            log_q[:, place] = log_p.to(log_q).masked_fill(told, 0.0)
            before = read(tokens[:, place : place + 1])
        return tokens, log_q, length - first

    def _say(self, states: Tensor, before: Tensor, first: int, cache: Any = None) -> Tensor:
        """Logits of as many places from `first` on as `before` has, (B, n, V). Behind a cache of the states and of the places
        before it there is one; else all is read, and kept where there is a cache."""
        count, fresh = before.shape[1], 0 if first else states.shape[1]
        here, mask = torch.arange(first, first + count, device=states.device), None
        x, told, places = states[:, here], before, here
        if fresh:
            mask = torch.ones(fresh + count, fresh + count, dtype=torch.bool, device=states.device)
            mask[:, fresh:] = mask[:, fresh:].tril(-fresh)
            x, told = torch.cat([states, x], 1), torch.cat([torch.zeros_like(states), told], 1)
            places = torch.cat([torch.arange(fresh, device=states.device), here])
        now, clean = states.new_ones(len(states)), torch.arange(len(places), device=states.device) < fresh
        z = self.network(
            x, now, now, mask=mask, cache=cache, self_cond=told, clean=clean.expand(len(states), -1), places=places
        )
        return in_full(z[:, fresh:])


def shifted(codes: Tensor, length: int) -> Tensor:
    """(B, n, d) → (B, length, d): one place later, 0 at the first."""
    return pad(codes, (0, 0, 1, 0))[:, :length]


def first_open(at: Tensor) -> int:
    """The first place that some row has to write; n where there is none."""
    return int(at.all(0).long().cumprod(0).sum())


class WithRounding(Objective):
    """Any objective on token states, and beside it the decoder's loss on what the map leaves of them. latest: time of the
    noisiest state that a last jump starts at."""

    def __init__(self, objective: Objective, latest: float = 1.0) -> None:
        super().__init__()
        self.objective, self.latest = objective, latest
        self.coupling, self.group_size = objective.coupling, objective.group_size  # type: ignore[misc]
        self.teacher_decay, self.low_discrepancy = objective.teacher_decay, objective.low_discrepancy
        self.local = getattr(objective, "diagonal", 1.0) == 1.0  # such a map is never told where it lands

    def forward(self, model: Any, batch: TokenStates, *, teacher: Any = None, rng: Rng, step: int) -> Loss:
        loss = self.objective(model, batch, teacher=teacher, rng=rng, step=step)
        states = self.landed(model, batch, rng) / model.data_scale
        before = shifted(model.clean_states(batch.tokens), batch.tokens.shape[1])
        nll = token_nll(model.rounding.logits(states, before), batch.tokens, unknown(batch)).sum()
        metrics = {**loss.metrics, "rounding": (nll.detach(), batch.count)}
        return replace(loss, sum=loss.sum + nll, metrics=metrics)

    @torch.no_grad()
    def landed(self, model: Any, batch: TokenStates, rng: Rng) -> Tensor:
        """x̂, (batch, N, d)."""
        x_0, least = model.codebook.encode(batch.tokens), model.t_min
        t = least + (self.latest - least) * rng.uniform("rounding time", batch.size).to(x_0)
        x_t = model.path.noise(x_0, model.path.draw_noise(rng, "rounding noise", x_0), t)
        asked = model if model.network.read_self is None else TwoPass(model)
        return asked.endpoint(x_t, t, t if self.local else torch.zeros_like(t), batch.context)

    def learn(self, statistics: dict[str, Tensor]) -> None:
        self.objective.learn(statistics)
