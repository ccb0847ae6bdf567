"""Endpoint regression of codes that have no table, and a share of the samples in decode mode (ELF, 2605.10938).

    denoise   L = E Σ_l ‖g_θ(x_t, t, t)^l − c^l‖²/(d·σ_t²)                t ~ the law of times
    decode    L = E Σ_l −log p_θ(x^l | x̃),   x̃^l = α_u c^l + κ σ_u ε^l    u = sigmoid(N(corruption, deviation²)) a token

The first is the regression of v on the linear path. In decode mode the network is asked at time 0 about codes that are a
little off, as a sampler leaves them. The source's times run the other way: its logit-normal(−1.5, 0.8) is +1.5 here, mostly noise,
and the corruption's 0.8 is −0.8.
"""

from typing import Any

import torch
from torch import Tensor

from flowmap.objectives.base import Loss, Objective
from flowmap.objectives.tokens.base import TokenStates, cross_entropy
from flowmap.path import expand
from flowmap.rng import Rng
from flowmap.self_conditioning import asked, drawn
from flowmap.times import LogitNormal, TimeLaw


class DecodedEndpoint(Objective):
    """decode: share of the samples in decode mode. times: default that of the source. noise: κ."""

    def __init__(
        self, times: TimeLaw | None = None, decode: float = 0.2, t_min: float = 0.05, self_conditioning: float = 0.0,
        corruption: float = -0.8, deviation: float = 0.8, noise: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if not 0 < decode < 1:
            raise ValueError(f"decode {decode}: a share of the samples, above 0 and below 1, for one network does both")
        if not 0 < t_min < 1:
            raise ValueError(f"t_min {t_min} must lie between 0 and 1: the weight has a pole at 0")
        self.times, self.decode, self.t_min = times or LogitNormal(1.5, 0.8), decode, t_min
        self.self_conditioning, self.noise = self_conditioning, noise
        self.corruption, self.deviation = corruption, deviation

    def forward(self, model: Any, batch: TokenStates, *, teacher: Any = None, rng: Rng, step: int) -> Loss:
        x_0 = model.codebook.encode(batch.tokens)
        reads = (rng.uniform("decode", batch.size) < self.decode).to(x_0.device)
        t = self.times.draw(rng, "t", batch.size).to(x_0).clamp_min(self.t_min)
        x_t = model.path.noise(x_0, model.path.draw_noise(rng, "eps", x_0), t)
        u = torch.sigmoid(self.corruption + self.deviation * rng.normal("corruption", *batch.tokens.shape)).to(x_0)
        off = model.path.noise(x_0, self.noise * rng.normal("off", *x_0.shape).to(x_0), u)
        told = drawn(rng, batch.size, self.self_conditioning)
        told = None if told is None else told.to(x_0.device)

        total = torch.zeros((), device=x_0.device)
        metrics = dict.fromkeys(("endpoint", "cross_entropy"), (total, total))
        near, walking = (torch.nonzero(rows)[:, 0] for rows in (reads, ~reads))
        if len(walking):
            part = batch[walking]
            of = asked(model, None if told is None else told[walking])
            g = of.endpoint(x_t[walking], t[walking], t[walking], part.context)
            error = self.regression(model, g, x_0[walking], t[walking], part.scored)
            total, metrics["endpoint"] = total + error, (error.detach(), part.count)
        if len(near):
            part, now = batch[near], x_0.new_zeros(len(near))
            nats = cross_entropy(model.logits(off[near], now, now, part.context), part.tokens).sum()
            total, metrics["cross_entropy"] = total + nats, (nats.detach(), part.count)
        return Loss(total, batch.count, metrics)

    def regression(self, model: Any, g: Tensor, c: Tensor, t: Tensor, scored: Tensor | None) -> Tensor:
        """The sum over all tokens that are scored."""
        error = (g - c).square().mean(-1) / expand(model.path.sigma(t).square(), g[..., 0])
        return (error if scored is None else error * scored).sum()
