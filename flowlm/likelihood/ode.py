"""Likelihood by the probability flow, in y = x/(σν) and r = √S.

    −log P(x) ≤ E_ε[ CE(y_a) + ½‖y_0‖² − ½‖ε‖² + ∫_0^{√S_a} div_y ĉ dr ],    y_a = √S_a c_x + ε  (math.md §5)

over the unknown tokens' coordinates, y_0 by dy/dr = ĉ from √S_a back to 0. A bound only if the flow is solved exactly, so what is returned is an *estimate*: each
path is solved in `steps` and in 2·steps, and the difference of the two stands beside the finer one. At the posterior it
tends to the entropy as S_a grows.
"""

import torch
from torch import Tensor

from flowlm.likelihood.denoiser import Denoiser, check, passes
from flowlm.likelihood.divergence import Field, refuse_detached, signs
from flowlm.likelihood.score import Score
from flowlm.likelihood.terms import chunks, scored_tokens, time_of
from flowmap.objectives.tokens import TokenStates
from flowmap.objectives.tokens.base import cross_entropy
from flowmap.path import expand
from flowmap.rng import Rng

STAGES = {"heun": ((1.0,), (0.5, 0.5)), "rk4": ((0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6))}
"""By name: how far ahead each further stage looks, from the stage before it; and the stages' weights."""
EXACT_SIZE = 256


def ode(
    model: Denoiser,
    states: TokenStates,
    rng: Rng,
    snr: float,
    steps: int = 16,
    draws: int = 2,
    probes: int | None = None,
    method: str = "rk4",
    trusted: bool = False,
) -> Score:
    """rng: addressed, one sample a row. snr: S_a, a `Curve`'s end on training text. draws: of y_a. probes: of Hutchinson's
    trace at every stage; 0: the exact trace; None: exact up to 256 coordinates, then 4. trusted: ask no proof that the
    network keeps nothing between calls and that its gradient is whole. nfe counts the forward calls of all of it."""
    if method not in STAGES:
        raise ValueError(f"method {method!r}: known are {', '.join(STAGES)}")
    if not trusted:
        check(model, states.tokens, states.context)
    free = torch.ones_like(states.tokens, dtype=torch.bool) if states.scored is None else states.scored
    size = int(free.any(0).sum()) * model.codebook.state_size
    if probes is None:
        probes = 0 if size <= EXACT_SIZE else 4
    coarse, fine = (torch.zeros(draws, states.size, dtype=torch.float64) for _ in range(2))
    noise = torch.zeros(draws, states.size, dtype=torch.float64)
    for number, part in enumerate(chunks(model, states, rng, draws, copies=8)):
        with torch.no_grad():
            clean = model.codebook.encode(part.states.tokens)
            eps = part.rng.normal("ode", *clean.shape, dtype=clean.dtype).to(clean.device)
        field = Field(model, part.states.context, free[part.row])
        y_a = snr**0.5 * clean + eps
        if not trusted and number == 0:
            few = torch.arange(min(8, len(y_a)), device=y_a.device)
            told = None if field.context is None else field.context[few]
            sub = Rng(rng.seed, few)
            refuse_detached(Field(model, told, field.free[few]), y_a[few] / 2, snr**0.5 / 2, sub)
        where = part.draw.cpu(), part.row.cpu()
        read = _read(model, part.states, y_a, snr)
        for found, n in ((coarse, steps), (fine, 2 * steps)):
            y, gained = _back(field, y_a, snr**0.5, n, method, part.rng, probes)
            end = ((y.square() - eps.square()) * field.free[..., None]).double().flatten(1).sum(1) / 2
            found[where] = (read + end).cpu() + gained.mean(0).cpu()
        if probes:
            noise[where] = (gained.var(0) / probes).cpu() if probes > 1 else torch.nan
    tokens = scored_tokens(states)
    details = {
        "snr_end": snr, "steps": 2 * steps, "trace": "exact" if probes == 0 else f"hutchinson, {probes} probes",
        "step_doubling": float((fine - coarse).mean(0).sum() / tokens.sum()),
        "coarse": float(coarse.mean(0).sum() / tokens.sum()),
        "trace_stderr": float(noise.sum().sqrt() / draws / tokens.sum()),
    }  # fmt: skip
    nfe = draws * (1 + 3 * steps * len(STAGES[method][1])) * passes(model)
    return Score.of({"paths": fine}, tokens, "estimate", nfe, **details)


@torch.no_grad()
def _read(model: Denoiser, states: TokenStates, y: Tensor, snr: float) -> Tensor:
    """CE at the data's end, (B,) float64."""
    t = time_of(model.path, torch.full((len(y),), snr, dtype=torch.float64)).to(y)
    x_t = expand(model.path.sigma(t), y) * model.path.noise_scale * y
    return cross_entropy(model.logits(x_t, t, t, states.context), states.tokens).double()


def _back(field: Field, y: Tensor, r: float, steps: int, method: str, rng: Rng, probes: int) -> tuple[Tensor, Tensor]:
    """y at r = 0, and ∫ div dr as each probe has it, (P or 1, B). Every stage has fresh probes."""
    ahead, weights = STAGES[method]
    h, gained = r / steps, torch.zeros(probes or 1, len(y), dtype=torch.float64, device=y.device)
    for i in range(steps):
        slope, total = None, torch.zeros_like(y)
        for stage, (look, weight) in enumerate(zip((0.0, *ahead), weights, strict=True)):
            at = y if slope is None else y - look * h * slope
            v = signs(rng, f"probe-{i}-{stage}", probes, field.free, y) if probes else None
            slope, divergence = field.with_divergence(at, r - (i + look) * h, v)
            total, gained = total + weight * slope, gained + weight * h * divergence.to(gained)
        y = y - h * total
    return y, gained
