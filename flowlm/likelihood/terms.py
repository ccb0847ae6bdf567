"""The two quantities that every bound is a sum of, at any y-SNR S, and sequences taken through a network in chunks.

e²(S) = ‖c_x − ĉ_θ(x_S)‖²,  ĉ = Cᵀp_θ          CE(S) = Σ_l −log p_θ(x^l | x_S)                       (math.md §5)

Both are of a *part*: all of a sequence, or, where its tokens have levels, those of one level. With blocks as context the
parts are its blocks, which hear of each other's clean text and never of each other's noise: each has an S of its own, one
call of the network scores all of them, and −log P of the sequence is bounded by the sum over its blocks,

    −log P(x) = Σ_b −log P(x^b | x^{<b}) ≤ Σ_b bound of block b behind clean text.

Shapes: B rows, N tokens, G parts of each.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flowlm.likelihood.denoiser import Denoiser
from flowmap.draws import every_draw, rows_of
from flowmap.objectives.tokens import TokenStates
from flowmap.objectives.tokens.base import each_cross_entropy
from flowmap.path import Path
from flowmap.rng import Rng

NUMBERS = 2**24
"""Elements of logits and states that are alive at once."""


def time_of(path: Path, snr: Tensor) -> Tensor:
    """The time at which α²/(σ²ν²) is S ≥ 0; 1 at S = 0. In the number type of snr."""
    ratio = snr.clamp_min(torch.finfo(snr.dtype).tiny).rsqrt() / path.noise_scale
    return torch.where(snr > 0, path.from_ratio(ratio), torch.ones_like(snr))


def snr_of(path: Path, t: float) -> float:
    """S at a time."""
    return float(path.snr(torch.tensor(t, dtype=torch.float64))) / path.noise_scale**2


def errors(
    model: Denoiser,
    states: TokenStates,
    snr: Tensor,
    rng: Rng,
    name: str,
    sign: float = 1.0,
    lands: float | None = None,
) -> tuple[Tensor, Tensor]:
    """(e², CE) of each part at its own S, (B, G) float64; one network call. snr: (B, G). sign: −1 for the same noise turned
    round. lands: time s that the network is told; None: its own t."""
    clean = model.codebook.encode(states.tokens)
    t = time_of(model.path, snr).to(clean)
    t = t[:, 0] if states.levels is None else t.gather(1, states.levels)
    x_t = model.path.noise(clean, sign * model.path.draw_noise(rng, name, clean), t)
    s = t if lands is None else torch.full_like(t, lands)
    logits = model.logits(x_t, t, s, states.context)
    apart = (clean - model.codebook.expected(logits)).square().sum(2)
    return of_parts(states, apart.double()), of_parts(states, each_cross_entropy(logits, states.tokens).double())


def num_parts(states: TokenStates) -> int:
    """G."""
    return 1 if states.levels is None else int(states.levels.max()) + 1


def of_parts(states: TokenStates, each: Tensor) -> Tensor:
    """Sums over the tokens of each part: (B, N) → (B, G)."""
    if states.levels is None:
        return each.sum(1, keepdim=True)
    return each.new_zeros(len(each), num_parts(states)).scatter_add(1, states.levels, each)


@dataclass(frozen=True)
class Chunk:
    """Some (row, draw) pairs. rng is addressed by both, so that chunks change nothing."""

    states: TokenStates
    rng: Rng
    row: Tensor
    draw: Tensor


def chunks(model: Denoiser, states: TokenStates, rng: Rng, draws: int, copies: int = 1) -> Iterator[Chunk]:
    """Every row so many times, draw after draw of a row. copies: states that are alive for each."""
    rows, draw = every_draw(states.size, draws, states.tokens.device)
    one = states.tokens.shape[1] * (model.codebook.size + 2 * model.codebook.state_size) * copies
    size = max(1, NUMBERS // one)
    for row, number in zip(rows.split(size), draw.split(size), strict=True):
        yield Chunk(states[row], rows_of(rng, row, number), row, number)


def scored_tokens(states: TokenStates) -> Tensor:
    """(B,) float64."""
    if states.scored is None:
        return torch.full((states.size,), float(states.tokens.shape[1]), dtype=torch.float64)
    return states.scored.sum(1).double().cpu()
