"""The K-step variational bound: what K ancestral steps of the denoiser can be charged for at most.

    L_K = ½ Σ_{k=1..K} (S_k − S_{k−1}) E e²(S_{k−1}) + E CE(S_K),      0 = S_0 < S_1 < … < S_K                 (math.md §5)

bounds −log P of the sampler z_k = z_{k−1} + (S_k − S_{k−1}) ĉ + √(S_k − S_{k−1}) ξ, y = z/√S (`laws.Ancestral`), which is a
proper law for any network. K = 0 is the cross-entropy of independent tokens, exact where the network is shown z_0 = 0
(`denoiser.FromZero`) and not noise; K → ∞ the bound in continuous time. The grid is
fitted on training text: the best of a fine mesh, found exactly by dynamic programming.
"""

import torch
from torch import Tensor

from flowlm.likelihood.curve import Curve
from flowlm.likelihood.denoiser import Denoiser, FromZero, check, passes
from flowlm.likelihood.score import Kind, Score
from flowlm.likelihood.terms import chunks, errors, num_parts, scored_tokens, time_of
from flowmap.objectives.tokens import TokenStates
from flowmap.path import Path
from flowmap.rng import Rng

MESH = 500


def fit_grid(curve: Curve, steps: int) -> Tensor:
    """(steps + 1,) float64, S from 0, at which the measured L_K is least."""
    if not 0 <= steps < MESH:
        raise ValueError(f"{steps} steps: a grid has 0 to {MESH - 1}")
    mesh = torch.linspace(0, 1, MESH, dtype=torch.float64)
    first, last = curve.edges[1].log(), curve.edges[-1].log()
    snr = torch.cat([torch.zeros(1, dtype=torch.float64), (first + mesh * (last - first)).exp()])
    apart, unread = (_read_off(curve.centers, values, snr) for values in (curve.apart, curve.unread))
    cost = torch.where(snr > snr[:, None], (snr - snr[:, None]) * apart[:, None] / 2, torch.inf)  # from row to column
    best, came = torch.full_like(snr, torch.inf), []
    best[0] = 0.0
    for _ in range(steps):
        best, where = (best[:, None] + cost).min(0)
        came.append(where)
    place = (best + unread).argmin()
    grid = [place]
    for where in reversed(came):
        grid.append(where[grid[-1]])
    return snr[torch.stack(grid[::-1])]


@torch.no_grad()
def k_step(
    model: Denoiser,
    states: TokenStates,
    rng: Rng,
    grid: Tensor,
    draws: int = 2,
    trusted: bool = False,
    told: bool = False,
) -> Score:
    """rng: addressed, one sample a row. grid: (K + 1,) S from 0. draws: of all K + 1 terms, 2 at least. trusted: as of `vlb`.
    told: the network hears where each step lands, as it did in training (`flowmap.objectives.tokens.AncestralBound`)."""
    if grid[0] != 0 or bool((grid.diff() <= 0).any()):
        raise ValueError(f"a grid of S rises from 0, not {[round(float(s), 4) for s in grid]}")
    if not trusted:
        check(model, states.tokens, states.context)
    found = torch.zeros(draws, states.size, dtype=torch.float64)
    lands = landings(model.path, grid) if told else [None] * len(grid)
    for part in chunks(model, states, rng, draws):
        where = part.draw.cpu(), part.row.cpu()
        for k, snr in enumerate(grid):
            at = snr.to(part.row.device).expand(len(part.row), num_parts(states))
            apart, unread = (e.sum(1) for e in errors(model, part.states, at, part.rng, f"step-{k}", lands=lands[k]))
            last = k == len(grid) - 1
            found[where] += (unread if last else apart * (grid[k + 1] - snr).to(apart) / 2).cpu()
    nfe = draws * len(grid) * passes(model)
    kind: Kind = "exact" if isinstance(model, FromZero) and len(grid) == 1 else "bound"
    return Score.of({"steps": found}, scored_tokens(states), kind, nfe, grid=grid.tolist())


def landings(path: Path, grid: Tensor) -> list[float]:
    """The time at which each step from S_k lands; the last, in which tokens are read, at the data."""
    return [*time_of(path, grid[1:].double()).tolist(), 0.0]


def _read_off(at: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    """Values at S by straight lines in log S; beyond the ends the nearest."""
    x, tiny = wanted.clamp_min(torch.finfo(wanted.dtype).tiny).log(), at.log()
    right = torch.searchsorted(tiny, x).clamp(1, len(at) - 1)
    share = ((x - tiny[right - 1]) / (tiny[right] - tiny[right - 1])).clamp(0, 1)
    return torch.lerp(values[right - 1], values[right], share)
