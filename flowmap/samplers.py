"""From noise to data: jumps of a two-time map, and the many-step baselines on the same network.

Each sampler takes (map, x, times): x at times[0], and times falling to the last; n = len(times) − 1 steps. State is
kept in fp32 or better. `nfe` counts every call of the network for one sample, guidance's second one included.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowmap.path import Path, expand
from flowmap.rng import Rng


@dataclass(frozen=True)
class Sampled:
    """x: (batch, *state) at the last time. nfe: network calls a sample. rounds: how many of them one after the
    other; fewer where several times are computed in one batch."""

    x: Tensor
    nfe: int
    rounds: int


class Guided:
    """A map that counts its calls, with classifier-free guidance (2207.12598): v = v_0 + w·(v_c − v_0).

    without: the context without its condition; needed where guidance w is not 1."""

    def __init__(self, model: Any, context: Any = None, without: Any = None, guidance: float = 1.0) -> None:
        if guidance != 1 and without is None:
            raise ValueError("guidance needs the context without its condition")
        self.model, self.context, self.without, self.guidance = model, context, without, guidance
        self.path: Path = model.path
        self.nfe = self.rounds = 0

    @torch.no_grad()
    def velocity(self, x: Tensor, t: Tensor, s: Tensor, copies: int = 1) -> Tensor:
        """copies: rows of x stand for so many times of each sample."""
        self.count(copies)
        return self.mixed(*(self.model.velocity(x, t, s, c).to(x.dtype) for c in self.branches(len(x), copies)))

    def branches(self, rows: int, copies: int = 1) -> list[Any]:
        """The contexts of a call: with the condition, and under guidance without it too."""
        asked = [self.context] if self.guidance == 1 else [self.context, self.without]
        return [self.repeated(context, rows, copies) for context in asked]

    def mixed(self, told: Tensor, base: Tensor | None = None) -> Tensor:
        """v_0 + w·(v_c − v_0) of what the branches said."""
        return told if base is None else base + self.guidance * (told - base)

    def count(self, copies: int) -> None:
        """One more round of calls."""
        self.rounds += 1
        self.nfe += copies * (1 if self.guidance == 1 else 2)

    @staticmethod
    def repeated(context: Any, rows: int, copies: int) -> Any:
        return context if copies == 1 or context is None else context[torch.arange(rows) // copies]

    def jump(self, x: Tensor, t: Tensor, s: Tensor, told: Tensor | None = None) -> Tensor:
        """told: the target that the network is told; s unless given, t for its local estimate."""
        return self.path.move(x, self.velocity(x, t, s if told is None else told), t, s)


Sampler = Callable[[Guided, Tensor, Tensor], Sampled]


def _check(times: Tensor) -> None:
    if len(times) < 2 or bool((times.diff() >= 0).any()):
        raise ValueError(f"times must fall, and be at least two: {times.tolist()}")


def _loop(model: Guided, x: Tensor, times: Tensor, step: Callable[[Tensor, Tensor, Tensor, int], Tensor]) -> Sampled:
    _check(times)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    before = model.nfe, model.rounds
    for i in range(len(times) - 1):
        t, s = (times[i + k].to(x).expand(len(x)) for k in (0, 1))
        x = step(x, t, s, i)
    return Sampled(x, model.nfe - before[0], model.rounds - before[1])


def pushforward(model: Guided, x: Tensor, times: Tensor) -> Sampled:
    """x ← X_{t→s}(x): the map told where it lands."""
    return _loop(model, x, times, lambda x, t, s, i: model.jump(x, t, s))


SMALLEST = 2.0**-7
"""Half of the shortest jump that shortcut models are trained for (2410.12557)."""


def shortcut(model: Guided, x: Tensor, times: Tensor) -> Sampled:
    """Pushforward whose steps below 2·SMALLEST go by the local velocity, v(x, t, t): a shortcut model learned no jump so short, and
    takes that for it in training too. Its jumps are powers of two."""

    def step(x: Tensor, t: Tensor, s: Tensor, i: int) -> Tensor:
        return model.jump(x, t, s, told=torch.where(t - s < 2 * SMALLEST, t, s))

    return _loop(model, x, times, step)


def ddim(model: Guided, x: Tensor, times: Tensor) -> Sampled:
    """The jump by the local estimate, v(x, t, t): a network that is not told where it lands (2010.02502). On the
    linear path this is Euler's method."""
    return _loop(model, x, times, lambda x, t, s, i: model.jump(x, t, s, told=t))


def euler(model: Guided, x: Tensor, times: Tensor) -> Sampled:
    """Euler's method on the probability flow in t."""

    def step(x: Tensor, t: Tensor, s: Tensor, i: int) -> Tensor:
        return x + expand(s - t, x) * model.path.ode(x, model.velocity(x, t, t), t)

    return _loop(model, x, times, step)


def heun(model: Guided, x: Tensor, times: Tensor) -> Sampled:
    """Heun's second order method; two calls a step."""

    def step(x: Tensor, t: Tensor, s: Tensor, i: int) -> Tensor:
        h = expand(s - t, x)
        slope = model.path.ode(x, model.velocity(x, t, t), t)
        ahead = x + h * slope
        return x + h * (slope + model.path.ode(ahead, model.velocity(ahead, s, s), s)) / 2

    return _loop(model, x, times, step)


def restart(model: Guided, x: Tensor, times: Tensor, rng: Rng, renoise: float = 1.0) -> Sampled:
    """Jump past the next time, add fresh noise up to it, jump again. renoise: γ, the share of the next state's noise that is fresh
    (γ-sampling of 2310.02279): 1, consistency sampling, jumps to the end; γ < 1 to where the ratio of noise to data is √(1 − γ²) of
    the next time's."""
    path = model.path

    def step(x: Tensor, t: Tensor, s: Tensor, i: int) -> Tensor:
        if times[i + 1] <= 0:
            return model.jump(x, t, torch.zeros_like(t))
        fresh = path.draw_noise(rng, f"restart-{i}", x)
        if renoise == 1:
            return path.noise(model.jump(x, t, torch.zeros_like(t)), fresh, s)
        ahead = path.from_ratio((1 - renoise**2) ** 0.5 * path.ratio(s))
        return path.noise(model.jump(x, t, ahead) / expand(path.alpha(ahead), x), renoise * fresh, s)

    return _loop(model, x, times, step)


def ddpm(model: Guided, x: Tensor, times: Tensor, rng: Rng, told: bool = False) -> Sampled:
    """Ancestral sampling (2006.11239): x_s from its posterior given x_t and the estimate of x_0. told: the network hears
    where the step lands."""
    path = model.path

    def step(x: Tensor, t: Tensor, s: Tensor, i: int) -> Tensor:
        g, _ = path.ends(x, model.velocity(x, t, s if told else t), t)
        alpha_s, sigma_s = path.alpha(s), path.sigma(s)
        gain = path.alpha(t) / alpha_s
        fresh = (path.sigma(t).square() - (gain * sigma_s).square()).clamp_min(0)  # variance of x_t given x_s, over ν²
        share = sigma_s.square() / path.sigma(t).square()
        mean = expand(gain * share, x) * x + expand(alpha_s * (1 - gain.square() * share), x) * g
        deviation = (fresh * share).sqrt()
        return mean + expand(deviation, x) * path.draw_noise(rng, f"ddpm-{i}", x)

    return _loop(model, x, times, step)


def ancestral(model: Guided, x: Tensor, times: Tensor, rng: Rng) -> Sampled:
    """The same steps by the map that is told where each lands, as it was trained to be (`objectives.tokens.ancestral`)."""
    return ddpm(model, x, times, rng, told=True)


SETTLED = 1e-3
"""How far a state may still move in the last round."""


def jacobi(
    model: Guided, x: Tensor, times: Tensor, sweeps: int | None = None, tolerance: float = 0.0, guess: bool = True
) -> Sampled:
    """Parallel pushforward (2002.03629): every step of x_{i+1} = X_i(x_i) at once, swept until nothing moves.

    After sweep k the first k states are the serial ones, so n sweeps are always enough. guess: the first
    trajectory is X_{1→t_i}(x_1), one batched call of the two-time map; otherwise x itself everywhere.
    """
    return _parallel(model, x, times, sweeps, tolerance, guess, lambda now, v, t, s: model.path.move(now, v, t, s))


def picard(
    model: Guided, x: Tensor, times: Tensor, sweeps: int | None = None, tolerance: float = 0.0, guess: bool = True
) -> Sampled:
    """Parallel DDIM by sums (ParaDiGMS 2305.16317): x_{i+1} = x_0 + Σ_{j≤i} increments of the last trajectory."""

    def increments(now: Tensor, v: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return model.path.move(now, v, t, s) - now

    return _parallel(model, x, times, sweeps, tolerance, guess, increments, summed=True)


def _parallel(
    model: Guided,
    x: Tensor,
    times: Tensor,
    sweeps: int | None,
    tolerance: float,
    guess: bool,
    advance: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    summed: bool = False,
) -> Sampled:
    _check(times)
    if not guess and sweeps is not None and sweeps < 1:
        raise ValueError(f"{sweeps} sweeps without a first guess move nothing: take 1 at least")
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    steps, batch, state = len(times) - 1, len(x), x.shape[1:]
    t, s = times[:-1].to(x).repeat(batch), times[1:].to(x).repeat(batch)
    before = model.nfe, model.rounds
    start = x[:, None].expand(-1, steps, *state).flatten(0, 1)
    path = start
    if guess:
        first = times[0].to(x).expand(batch * steps)
        landed = model.path.move(start, model.velocity(start, first, s, steps), first, s).unflatten(0, (batch, steps))
        path = torch.cat([x[:, None], landed[:, :-1]], 1).flatten(0, 1)
        last = landed[:, -1]
    for _ in range(steps if sweeps is None else sweeps):
        v = model.velocity(path, t, t if summed else s, steps)
        moved = advance(path, v, t, s).unflatten(0, (batch, steps))
        if summed:
            moved = x[:, None] + moved.cumsum(1)
        old, last = path, moved[:, -1]
        path = torch.cat([x[:, None], moved[:, :-1]], 1).flatten(0, 1)
        if tolerance and float((path - old).detach().abs().max()) <= tolerance:
            break
    return Sampled(last, model.nfe - before[0], model.rounds - before[1])


SAMPLERS = {
    "pushforward": pushforward,
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "restart": restart,
    "ddpm": ddpm,
    "ancestral": ancestral,
    "jacobi": partial(jacobi, tolerance=SETTLED),
    "picard": partial(picard, tolerance=SETTLED),
}
OF_STATES = {**SAMPLERS, "shortcut": shortcut}
"""And those of maps whose states are no tokens."""
STOCHASTIC = ("restart", "ddpm", "ancestral")
PARALLEL = ("jacobi", "picard")
"""All steps at once, round after round: more calls, fewer rounds of them."""
SERIAL = tuple(name for name in SAMPLERS if name not in PARALLEL)


def sample(name: str, model: Guided, x: Tensor, times: Tensor, rng: Rng) -> Sampled:
    """Any of OF_STATES; rng: for those that draw noise on the way."""
    if name not in OF_STATES:
        raise ValueError(f"sampler {name!r}: known are {', '.join(OF_STATES)}")
    more = (rng,) if name in STOCHASTIC else ()
    return OF_STATES[name](model, x, times, *more)  # type: ignore[operator]


def uniform_times(steps: int, start: float = 1.0, end: float = 0.0) -> Tensor:
    """steps + 1 times from start to end, evenly spaced, float64."""
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)
