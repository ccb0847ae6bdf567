"""Where on the way from noise to data a bound looks: a law of the y-SNR S with one level a cell.

    cells 0 = S_0 < S_1 < … < S_m;   S uniform inside the first, log S inside the others;   cell c with chance q_c
    q_c ∝ √(Var[½ dS/dv · e²] + E[½ dS/dv · e²]²/n)               v ∈ [0, 1) inside a cell: least variance of ½∫ e² dS at n even times

The first cell begins at S = 0, so that nothing of the integral is left out and no prior term is needed. Any positive q is
unbiased: what is fitted, on training text, is the variance alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Clock:
    """edges: (m + 1,) float64, from 0; the last is where tokens are read. chance: (m,), adds up to 1. reading: the share of
    the network calls that is best spent there."""

    edges: Tensor
    chance: Tensor
    reading: float = 0.25

    def __post_init__(self) -> None:
        if self.edges[0] != 0 or bool((self.edges.diff() <= 0).any()) or bool((self.chance <= 0).any()):
            raise ValueError("a clock's edges rise from 0, and every cell has a chance above 0")

    @classmethod
    def even(cls, first: float, end: float, cells: int) -> "Clock":
        """Cells alike in log S from `first` to `end`, and [0, first], all as likely."""
        if not 0 < first < end:
            raise ValueError(f"cells from S = {first} to {end}: 0 < first < end")
        rising = torch.linspace(0, 1, cells, dtype=torch.float64) * torch.tensor(end / first).double().log()
        edges = torch.cat([torch.zeros(1, dtype=torch.float64), first * rising.exp()])
        return cls(edges, torch.full((cells,), 1 / cells, dtype=torch.float64))

    @property
    def end(self) -> float:
        return float(self.edges[-1])

    def cell(self, u: Tensor) -> Tensor:
        """Which cell a u in [0, 1) falls into."""
        return torch.searchsorted(self.chance.cumsum(0), u.contiguous(), right=True).clamp_max(len(self.chance) - 1)

    def at(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(S, ½ dS/du) of u ~ U[0, 1), float64, any shape: E[½ dS/du · e²(S)] = ½∫ e² dS."""
        cell = self.cell(u)
        chance, above = self.chance[cell], self.chance.cumsum(0)[cell]
        v = ((u - above + chance) / chance).clamp(0, 1)
        low, high = self.edges[cell], self.edges[cell + 1]
        log_ratio = (high / low.clamp_min(torch.finfo(low.dtype).tiny)).log()
        first = cell == 0
        snr = torch.where(first, high * v, low * (v * torch.where(first, 0.0, log_ratio)).exp())
        return snr, torch.where(first, high, snr * log_ratio) / (2 * chance)


def lattice(shift: Tensor, index: Tensor, draws: int, parts: int = 1) -> Tensor:
    """u = (j + frac(shift + φ·index))/draws, (rows, parts, draws): even over [0, 1) inside each part of a sequence and, by the
    golden ratio, over parts and sequences; each u is uniform when shift is. shift, index: (rows,), index that of a sequence."""
    number = index[:, None] * parts + torch.arange(parts, device=index.device)
    phase = (shift[:, None] + number.double() * (5**0.5 - 1) / 2) % 1
    return (torch.arange(draws, device=phase.device) + phase[..., None]) / draws
