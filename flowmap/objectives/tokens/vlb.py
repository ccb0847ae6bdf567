"""The variational bound of a flow language model in continuous time, one time a sample (2107.00630, 2305.18619).

    −log P(x) ≤ ½S(t_max)‖c_x‖² + E Σ_l −log p(x^l | x_{t_min}) + ½∫ E‖c_x − ĉ(x_S)‖² dS,   S = α²/(σ²ν²), ĉ = Cᵀp

the integral from S(t_max) to S(t_min) (math.md §5). The first term is the KL of the noisiest state to the prior
N(0, ν²σ²I): zero at t_max = 1, and without it the rest is no bound below. Holds for any network; tight at the posterior.
Where blocks of a sample that do not see each other's noise have times of their own, it is the sum of
their bounds. Codes learn through all three terms. sum/count is nats a token: times N, a bound on −log P of a sequence.
"""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from flowmap.objectives.base import Loss, Objective
from flowmap.objectives.tokens.base import TokenStates, cross_entropy
from flowmap.path import Path, expand
from flowmap.rng import Rng
from flowmap.self_conditioning import asked, drawn
from flowmap.signal import Cut, LogSNR, SignalLaw
from flowmap.times import TimeLaw


class VariationalBound(Objective):
    """times: law of the one time a sample, one of S or any law of time, cut to [t_min, t_max]. None: `signal.LogSNR`, "log-snr"
    uniform in λ = log S, even over scales, or "logistic" with its center and scale, which allows t_max = 1. self_conditioning:
    share of the samples asked by two passes. cross_entropy: weight of −log p(x^l | x_t) at the drawn times, beside the bound (a choice
    that 2605.18530 found to harm); learned ends of the times hear it too. reading: share of the samples whose second term is computed,
    and stands for all in training: next to the text there is little to learn, at the price of the third's network call (2305.18619 splits
    a batch so too)."""

    version = 2

    def __init__(
        self,
        t_min: float = 0.02,
        t_max: float = 0.99,
        law: Literal["log-snr", "logistic"] = "log-snr",
        center: float = 0.0,
        scale: float = 2.0,
        times: TimeLaw | SignalLaw | None = None,
        self_conditioning: float = 0.0,
        cross_entropy: float = 0.0,
        reading: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 < reading <= 1:
            raise ValueError(f"reading {reading}: a share of the samples, above 0 and at most 1")
        self.reading = reading
        self.self_conditioning, self.cross_entropy = self_conditioning, cross_entropy
        if law not in ("log-snr", "logistic"):
            raise ValueError(f"unknown law {law!r} of the bound's times: known are log-snr, logistic")
        self.t_min, self.t_max = t_min, t_max
        if times is None:
            self.signal: SignalLaw = LogSNR(t_min, t_max, center, scale if law == "logistic" else None)
        else:
            self.signal = times if isinstance(times, SignalLaw) else Cut(times, t_min, t_max)

    def forward(self, model, batch: TokenStates, *, teacher=None, rng: Rng, step: int) -> Loss:
        plain, twice = model, drawn(rng, batch.size, self.self_conditioning)
        model = asked(plain, twice)
        x_0 = model.codebook.encode(batch.tokens)
        told = x_0 if batch.scored is None else x_0 * batch.scored[..., None]
        t_min, t_max = self.signal.ends(model.path, x_0.device)
        noisiest = model.path.snr(t_max) / model.path.noise_scale**2
        prior = noisiest.to(x_0) / 2 * told.square().flatten(1).sum(1)

        own, times = batch.draws(rng)
        looks = self.signal.draw(model.path, own.place("t", times))
        t, weight = (batch.at_tokens(part).to(x_0) for part in (looks.t, looks.weight))
        x_t = model.path.noise(x_0, model.path.draw_noise(rng, "eps", x_0), t)
        now = t.detach()
        logits = model.logits(x_t, now, now, batch.context)
        drift = (expand(weight, x_0) * (x_0 - model.codebook.expected(logits)).square()).flatten(1).sum(1)

        eps = model.path.draw_noise(rng, "eps_min", x_0)
        share = self.reading if self.training else 1.0
        if share == 1:
            reading = reading_cost(model, batch, x_0, eps, t_min)
        else:
            rows = torch.nonzero(rng.place("reads", batch.size) < share)[:, 0].to(x_0.device)
            some = asked(plain, None if twice is None else twice[rows.to(twice.device)])
            reading = prior.new_zeros(batch.size)
            if len(rows):
                costs = reading_cost(some, batch[rows], x_0[rows], eps[rows], t_min)
                reading = reading.index_add(0, rows, costs / share)

        count = batch.count
        parts = {"prior": prior, "drift": drift, "reading": reading}
        metrics = {name: (part.sum().detach(), count) for name, part in parts.items()}
        nats = partial(cross_entropy, logits.detach(), batch.tokens)
        total = (prior + drift + reading).sum()
        if self.cross_entropy:
            total = total + self.cross_entropy * cross_entropy(logits, batch.tokens).sum()
        if batch.levels is not None:  # blocks with times of their own tell no law of a sample's
            return Loss(total, count, metrics)
        statistics = self.signal.statistics(looks, drift, nats, batch.counts)
        return Loss(total + self.signal.lesson(looks, drift).to(x_0), count, metrics, statistics)

    def draw(self, path: Path, rng: Rng, count: int) -> tuple[Tensor, Tensor]:
        """(t, ½·dS/du), (count,), float64: times and the weights that make the estimate unbiased."""
        looks = self.signal.draw(path, rng.place("t", count))
        return looks.t, looks.weight

    def learn(self, statistics: dict[str, Tensor]) -> None:
        self.signal.learn(statistics)


def reading_cost(model: Any, batch: TokenStates, x_0: Tensor, eps: Tensor, t_min: Tensor) -> Tensor:
    """Σ_l −log p(x^l | x_{t_min}), (rows,). t_min: a scalar."""
    t = t_min.to(x_0).expand(len(x_0))
    x_t, now = model.path.noise(x_0, eps, t), t.detach()
    return cross_entropy(model.logits(x_t, now, now, batch.context), batch.tokens)
