"""How a network errs along the way, measured on training text: what clocks and grids are fitted to.

    m_c = E e²(S),   d_c = E[½ dS/dv · e²],   f_c = √E[(½ dS/dv · e²)²],   CE_c = E CE(S)       S as a clock has it in cell c

Σ d_c is ½∫ e² dS, the drift of the variational bound. Nearly all of it falls in a tenth of the range of log S, anywhere in it: a first
look at cells that are even there finds where, and where tokens are best read; the cells of the second are fine there.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowlm.likelihood.clock import Clock, lattice
from flowlm.likelihood.denoiser import Denoiser, check
from flowlm.likelihood.terms import chunks, errors, num_parts, scored_tokens, snr_of
from flowlm.likelihood.vlb import drift, reading
from flowmap.draws import rows_of
from flowmap.objectives.tokens import TokenStates
from flowmap.rng import Rng
from flowmap.times import interpolate

CELLS = 40
LEAST, MARGIN, BEGUN = 0.4, 2, 1e-3
"""Of the cells, those that are spread evenly from where this share of the drift is behind to so many cells of the first look beyond the one where
reading seemed best: where little drift is left it is still to be seen what reading costs."""
EVEN = 8
"""Even times of a row that a clock is fitted for."""
FLOOR = 0.02
"""Of the mean chance, that every cell keeps: no weight grows without bound where little was measured."""
FADE = 0.5
"""Of its neighbour's chance, that a cell keeps: near the data errors are rare and large, and a cell in which none was seen
has one after all."""
SLACK = 1e-4
"""Nats/token that may be lost by reading early."""


@dataclass(frozen=True)
class Curve:
    """edges: (m + 1,) S from 0. apart, drift, force, unread: (m,), m_c, d_c, f_c and CE_c of a sequence, or of one part of
    it. tokens: of the same, in mean."""

    edges: Tensor
    apart: Tensor
    drift: Tensor
    force: Tensor
    unread: Tensor
    tokens: float
    look: "Curve | None" = None
    """the first look, whose cells see more of the way each"""

    @property
    def centers(self) -> Tensor:
        """(m,) S in the middle of each cell: of the first, half its edge."""
        return torch.cat([self.edges[1:2] / 2, (self.edges[1:-1] * self.edges[2:]).sqrt()])

    def bounds(self) -> Tensor:
        """(m − 1,): the bound in nats/token if reading began at edge 1, 2, …"""
        return (self.drift.cumsum(0)[:-1] + (self.unread[:-1] + self.unread[1:]) / 2) / self.tokens

    def end(self, slack: float = SLACK) -> int:
        """The first edge at which the bound is within `slack` nats/token of its least; of a second look, the first there or behind it."""
        if self.look is not None:
            there = self.look.edges[self.look.end(slack)]
            return min(int((self.edges < there * (1 - 1e-9)).sum()), len(self.drift))
        bounds = self.bounds()
        return int(torch.nonzero(bounds <= bounds.min() + slack)[0, 0]) + 1


@torch.no_grad()
def measure(
    model: Denoiser, states: TokenStates, rng: Rng, draws: int = 8, end: float | None = None, cells: int = CELLS
) -> Curve:
    """states: training text. draws: network calls a row of either look, 2 at least. end: the largest S, default that of the model's t_min."""
    check(model, states.tokens, states.context)
    parts = num_parts(states)
    if draws < 2 or draws * states.size * parts < 4 * cells:
        raise ValueError(
            f"{states.size} sequences, {draws} draws each: a curve of {cells} cells takes {4 * cells} of them"
        )
    scored, clean = scored_tokens(states), model.codebook.encode(states.tokens[:256])
    tokens = float(scored.mean()) / parts
    length = float(clean.square().sum(-1).mean()) * tokens
    even = Clock.even(1e-3 / length, end or snr_of(model.path, getattr(model, "t_min", 1e-3)), cells)
    look = _seen(model, states, rng, draws, even, tokens)
    return replace(_seen(model, states, rng, draws, Clock(finer(look), even.chance), tokens), look=look)


def finer(look: Curve) -> Tensor:
    """As many edges, from its second on so that force is shared out evenly, LEAST but for, up to MARGIN beyond its end."""
    cells = len(look.force)
    last = min(look.end() + MARGIN, cells)
    force, edges = look.force[1:last], look.edges[1 : last + 1].log()
    passed = look.drift.cumsum(0)[1:last]
    begun = (passed >= BEGUN * passed[-1]).to(force)
    share = (1 - LEAST) * force / force.sum().clamp_min(1e-300) + LEAST * begun / begun.sum()
    share = share.clamp_min(1e-9)
    total = torch.cat([share.new_zeros(1), share.cumsum(0)])
    inner = interpolate(torch.linspace(0, 1, cells, dtype=torch.float64)[1:-1] * total[-1], total, edges)
    return torch.cat([look.edges[:2], inner.exp(), look.edges[last : last + 1]])


def _seen(model: Denoiser, states: TokenStates, rng: Rng, draws: int, clock: Clock, tokens: float) -> Curve:
    """clock: whose cells are alike in chance."""
    assert rng.samples is not None
    parts, cells = num_parts(states), len(clock.chance)
    shift = Rng(rng.seed).uniform("curve", 1, dtype=torch.float64).to(rng.samples.device)
    sums = torch.zeros(5, cells, dtype=torch.float64)
    for part in chunks(model, states, rng, draws):
        every = lattice(shift.expand(len(part.row)), rng.samples[part.row], draws, parts)
        u = every.gather(2, part.draw[:, None, None].expand(-1, parts, 1))[..., 0].cpu()
        snr, weight = clock.at(u)
        noise = rows_of(rng, part.row)  # the same in every cell of a row: grids are compared on common noise
        apart, unread = (x.cpu() for x in errors(model, part.states, snr.to(part.row.device), noise, "curve"))
        force = weight / cells * apart  # du is dv/cells of a clock whose cells are alike
        told = torch.stack([torch.ones_like(u), apart, force, force.square(), unread])
        sums.index_add_(1, clock.cell(u).flatten(), told.flatten(1))
    if bool((sums[0] == 0).any()):
        raise ValueError(f"{states.size} sequences, {draws} draws each left a cell empty: measure more")
    apart, gain, force, unread = sums[1:] / sums[0]
    return Curve(clock.edges, apart, gain, force.sqrt(), unread, tokens)


def fit_clock(model: Denoiser, states: TokenStates, rng: Rng, curve: Curve, slack: float = SLACK) -> Clock:
    """The law of least variance up to the edge where the bound is least, and the calls' shares: two draws of each term for every
    row of the training text tell their deviations given the text. Of EVEN even times what differs between cells is left by one in EVEN of its
    variance, what differs inside them, from noise to noise, as it is."""
    end = curve.end(slack)
    inside = (curve.force.square() - curve.drift.square()).clamp_min(0)
    chance = (inside + curve.drift.square() / EVEN).sqrt()[:end]
    for cells in (range(1, end), range(end - 2, -1, -1)):
        for c in cells:
            chance[c] = torch.maximum(chance[c], FADE * chance[c - 1 if cells.step > 0 else c + 1])
    chance = chance + FLOOR * chance.mean()
    clock = Clock(curve.edges[: end + 1], chance / chance.sum())
    with torch.no_grad():
        pairs = reading(model, states, rng, clock.end, 2), drift(model, states, rng, clock, 2, 1)
    read, drifted = (float((calls * part.var(0).mean()).sqrt()) for part, calls in zip(pairs, (1, 2), strict=True))
    return replace(clock, reading=read / max(read + drifted, 1e-300))
