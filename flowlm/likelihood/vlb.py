"""The variational bound in continuous time (2107.00630, 2305.18619), at the least variance that a network call buys.

    −log P(x) ≤ E CE(S_end) + ½∫_0^{S_end} E e²(S) dS                                                  (math.md §5)

From S = 0: no prior term. What makes it cheap biases nothing: S by a law fitted on training text (`clock`), times that
are even over a sequence and over sequences, each noise ε beside −ε, and calls shared between the two terms by their
deviations (Neyman). Holds for any network; tight at the posterior as S_end grows. The same integral as the training loss
`flowmap.objectives.tokens.VariationalBound`, one independent time a sample. Of blocks (`terms`) each has times of its own,
even over those of a sequence too.
"""

import torch
from torch import Tensor

from flowlm.likelihood.clock import Clock, lattice
from flowlm.likelihood.denoiser import Denoiser, check, passes
from flowlm.likelihood.score import Part, Score
from flowlm.likelihood.terms import chunks, errors, num_parts, scored_tokens
from flowmap.objectives.tokens import TokenStates
from flowmap.rng import Rng

REPEATS, TOGETHER, LEAST = 4, 16, 8
"""Of what tells the error: few, each of many even times, of few sequences, which each have an error of their own; of MANY as many as it takes
to tell how the mean over all of them varies, over which times are even too, and where there are LEAST at all."""
MANY = 64


@torch.no_grad()
def vlb(model: Denoiser, states: TokenStates, rng: Rng, clock: Clock, calls: int = 16, trusted: bool = False) -> Score:
    """rng: addressed, Rng(seed, samples), one sample a row. calls: of the network for each row. trusted: ask no proof that
    the network keeps nothing between calls."""
    if not trusted:
        check(model, states.tokens, states.context)
    if calls < 6:
        raise ValueError(f"{calls} calls a sequence: 6 at least, two to read and two pairs on the way")
    readings = min(max(2, round(calls * clock.reading)), calls - 4)
    pairs = (calls - readings) // 2
    many = states.size >= MANY and pairs >= LEAST
    draws = max(1, pairs // (TOGETHER if many else REPEATS))
    repeats = pairs // draws
    parts = {
        "reading": Part(reading(model, states, rng, clock.end, readings)),
        "drift": Part(drift(model, states, rng, clock, repeats, draws), shared=many),
    }
    nfe = (readings + 2 * repeats * draws) * passes(model)
    return Score.of(parts, scored_tokens(states), "bound", nfe, snr_end=clock.end)


def reading(model: Denoiser, states: TokenStates, rng: Rng, snr: float, draws: int) -> Tensor:
    """CE at S, (draws, B) float64."""
    found = torch.zeros(draws, states.size, dtype=torch.float64)
    for part in chunks(model, states, rng, draws):
        at = torch.full((len(part.row), num_parts(states)), snr, dtype=torch.float64, device=part.row.device)
        found[part.draw.cpu(), part.row.cpu()] = errors(model, part.states, at, part.rng, "read")[1].sum(1).cpu()
    return found


def drift(model: Denoiser, states: TokenStates, rng: Rng, clock: Clock, repeats: int, draws: int) -> Tensor:
    """½∫ e² dS, (repeats, B) float64: each a mean over `draws` even times, of ε and −ε; repeats independent."""
    assert rng.samples is not None
    shifts = Rng(rng.seed).uniform("shift", repeats, dtype=torch.float64).to(rng.samples.device)
    found, parts = torch.zeros(repeats, states.size, dtype=torch.float64), num_parts(states)
    for part in chunks(model, states, rng, repeats):
        u = lattice(shifts[part.draw], rng.samples[part.row], draws, parts)
        for j in range(draws):
            snr, weight = clock.at(u[..., j].cpu())
            for sign in (1.0, -1.0):
                apart, _ = errors(model, part.states, snr.to(u.device), part.rng, f"drift-{j}", sign)
                found[part.draw.cpu(), part.row.cpu()] += (weight * apart.cpu()).sum(1) / (2 * draws)
    return found
