"""−log P of a sampler where its answers cannot be listed: noise is drawn from near where the text came from.

    z̄(x): the local flow run back from the codes c_x at S_a to S = 0,      q(z) = N(z̄(x), ρ²ν² I)
    P̂(x) = 1/n Σ_j Π_l p(x^l | z_j) · N(z_j; 0, ν² I)/q(z_j),      −log P̂ ≥ −log P in expectation, and falls with n

Of blocks (`terms`) each has noise, weights and a mean of its own, and P̂ is their product. A bound for any network and any ρ; ρ, and nothing else, is fitted, on training text. Coordinates of known tokens need no
proposal. In many dimensions few draws carry the mean: the effective sample size (Σw)²/Σw² says how few.
"""

import math

import torch
from torch import Tensor

from flowlm.likelihood.denoiser import check, passes
from flowlm.likelihood.divergence import Field
from flowlm.likelihood.enumerated import of_draws
from flowlm.likelihood.laws import Law
from flowlm.likelihood.score import Score
from flowlm.likelihood.terms import chunks, num_parts, of_parts, scored_tokens
from flowmap.objectives.tokens import TokenStates
from flowmap.rng import Rng

LARGEST = 512
"""Unknown coordinates of a sequence, or of one block of it, above which no number of draws is enough."""
COUNTS = (1, 4, 16, 64)
INFLATIONS = tuple(round(0.3 + 0.05 * i, 2) for i in range(19))
INVERSION = 16


@torch.no_grad()
def importance(
    law: Law, states: TokenStates, rng: Rng, inflation: float, snr: float, draws: int = 64, steps: int = INVERSION
) -> Score:
    """rng: addressed, one sample a row. inflation: ρ. snr: S_a. steps: Heun's, of the way back. details: the bound at 1, 4, 16
    and 64 draws, as far as they reach, and the effective sample size."""
    _refuse_large(law, states)
    check(law.model, states.tokens, states.context)
    log_w = log_weights(law, states, rng, inflation, snr, draws, steps)
    tokens = scored_tokens(states)
    bounds = {
        f"bound_at_{n}": float(-(_grouped(log_w, n) - math.log(n)).mean(0).sum() / tokens.sum())
        for n in COUNTS
        if n <= draws
    }
    size = (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()
    nfe = draws * law.nfe + 2 * steps * passes(law.model)
    return of_draws(
        log_w,
        tokens,
        nfe,
        shared=False,
        inflation=inflation,
        effective_sample_size=float(size[_unknown(states) > 0].mean()),
        **bounds,
    )


@torch.no_grad()
def fit_inflation(law: Law, states: TokenStates, rng: Rng, snr: float, draws: int = 4, steps: int = INVERSION) -> float:
    """The ρ of the least bound on training text, at so many draws."""
    _refuse_large(law, states)
    bounds = [
        float((math.log(draws) - log_weights(law, states, rng, rho, snr, draws, steps).logsumexp(0)).sum())
        for rho in INFLATIONS
    ]
    return INFLATIONS[min(range(len(bounds)), key=bounds.__getitem__)]


def log_weights(
    law: Law, states: TokenStates, rng: Rng, inflation: float, snr: float, draws: int, steps: int
) -> Tensor:
    """log of p(x | z_j) N(z_j)/q(z_j) of every part, (draws, B, G) float64."""
    model, nu = law.model, law.model.path.noise_scale
    free = torch.ones_like(states.tokens, dtype=torch.bool) if states.scored is None else states.scored
    origin = invert(law, states, free, snr, steps)
    found = torch.zeros(draws, states.size, num_parts(states), dtype=torch.float64)
    for part in chunks(model, states, rng, draws):
        inside = free[part.row][..., None]
        center = origin[part.row]
        eps = part.rng.normal("importance", *center.shape, dtype=center.dtype).to(center.device)
        y = torch.where(inside, center + inflation * eps, eps)
        z_rng = Rng(rng.seed + 1, part.rng.samples, part.rng.batch)  # what samplers draw besides, apart from ε
        log_p = law.last(nu * y, z_rng, part.states.context).double().log_softmax(-1)
        told = log_p.gather(-1, part.states.tokens[..., None])[..., 0] * free[part.row]
        ratio = ((eps.square() - y.square()) / 2 + math.log(inflation)) * inside
        found[part.draw.cpu(), part.row.cpu()] = of_parts(part.states, told + ratio.double().sum(2)).cpu()
    return found


def invert(law: Law, states: TokenStates, free: Tensor, snr: float, steps: int) -> Tensor:
    """z̄/ν, (B, N, d), by Heun's method in √S."""
    found, r = [], snr**0.5
    h = r / steps
    rows = torch.arange(states.size, device=states.tokens.device)
    for row in rows.split(256):
        part = states[row]
        field = Field(law.model, part.context, free[row])
        y = r * law.model.codebook.encode(part.tokens)
        for i in range(steps):
            slope = field(y, r - i * h)
            y = y - h / 2 * (slope + field(y - h * slope, r - (i + 1) * h))
        found.append(y)
    return torch.cat(found)


def _grouped(log_w: Tensor, n: int) -> Tensor:
    """log of sums over disjoint groups of n draws, (draws // n, B, G)."""
    whole = len(log_w) // n
    return log_w[: whole * n].unflatten(0, (whole, n)).logsumexp(1)


def _unknown(states: TokenStates) -> Tensor:
    """(B, G): scored tokens of each part."""
    scored = torch.ones_like(states.tokens) if states.scored is None else states.scored
    return of_parts(states, scored.double()).cpu()


def _refuse_large(law: Law, states: TokenStates) -> None:
    size = int(_unknown(states).max()) * law.model.codebook.state_size
    if size > LARGEST:
        raise ValueError(
            f"{size} unknown coordinates at once: importance sampling of noise takes {LARGEST} at most; use the vlb or k-step "
            "estimator, or fewer tokens at once"
        )
