"""Laws in the plane known in closed form, how samples are held against one, and a network for points.

Each law has mean zero and deviation σ_d = 0.5 in each coordinate, what FlowMap's preconditioning expects. The law's
probability of every cell of a grid is exact, so a histogram is compared with the law and not with more samples.
Points: (n, 2). A law is made of equal parts (squares, modes), whose supports do not meet.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowmap.backbone import TimeEmbedding
from flowmap.rng import Rng

DATA_SCALE = 0.5
EDGES = torch.linspace(-1.6, 1.6, 65, dtype=torch.float64)
"""Of the histogram: 64 × 64 cells of side 0.05."""


@dataclass(frozen=True)
class Law:
    """parts: how many there are."""

    parts: int = 8

    def sample(self, count: int, rng: Rng) -> Tensor:
        """(count, 2), float32. An rng of named samples must name `count` of them."""
        raise NotImplementedError

    def density(self, x: Tensor) -> Tensor:
        """p(x), (n,)."""
        raise NotImplementedError

    def part(self, x: Tensor) -> Tensor:
        """The part on whose support x lies, (n,) int64; −1: on none."""
        raise NotImplementedError

    def part_mass(self) -> float:
        """What falls on the support of one part."""
        raise NotImplementedError

    def cells(self, edges: Tensor = EDGES) -> Tensor:
        """Exact probabilities of a square grid's cells, float64, x along the first axis and y along the second."""
        raise NotImplementedError

    def inside(self, x: Tensor) -> Tensor:
        """(n,) bool: on the support of some part."""
        return self.part(x) >= 0


@dataclass(frozen=True)
class Checkerboard(Law):
    """Uniform on the 8 dark squares of a 4 × 4 board over [−√3σ_d, √3σ_d]²: each coordinate alone is uniform."""

    half: float = 3**0.5 * DATA_SCALE

    @property
    def side(self) -> float:
        """Of a square."""
        return self.half / 2

    def sample(self, count: int, rng: Rng) -> Tensor:
        u = rng.uniform("toy-point", count, 3)
        square = (u[:, 0] * self.parts).long()
        row = square // 2
        corner = torch.stack([2 * (square % 2) + row % 2, row], -1)
        return (corner + u[:, 1:]) * self.side - self.half

    def density(self, x: Tensor) -> Tensor:
        return self.inside(x).to(x.dtype) / (self.parts * self.side**2)

    def part(self, x: Tensor) -> Tensor:
        column, row = ((x + self.half) / self.side).floor().long().unbind(-1)
        on_board = (torch.minimum(column, row) >= 0) & (torch.maximum(column, row) < 4)
        return torch.where(on_board & ((column + row) % 2 == 0), 2 * row + column // 2, -1)

    def part_mass(self) -> float:
        return 1 / self.parts

    def cells(self, edges: Tensor = EDGES) -> Tensor:
        columns = torch.arange(4)
        share = ((edges.double()[:, None] + self.half) / self.side - columns).clamp(0, 1).diff(dim=0)
        dark = (columns[:, None] + columns) % 2 == 0
        return share @ dark.double() @ share.T / self.parts


@dataclass(frozen=True)
class EightGaussians(Law):
    """Eight normal modes on a circle, its radius `ratio` deviations. Support: what is within `reach` deviations of a
    mode, all but e^{−4.5} = 1.1% of the mass."""

    ratio: float = 8.0
    reach: float = 3.0

    @property
    def deviation(self) -> float:
        """Of a mode, d: σ_d² = (ratio·d)²/2 + d²."""
        return DATA_SCALE / (self.ratio**2 / 2 + 1) ** 0.5

    @property
    def centres(self) -> Tensor:
        """(8, 2), float64."""
        angle = 2 * math.pi / self.parts * torch.arange(self.parts, dtype=torch.float64)
        return self.ratio * self.deviation * torch.stack([angle.cos(), angle.sin()], -1)

    def sample(self, count: int, rng: Rng) -> Tensor:
        mode = (rng.uniform("toy-mode", count) * self.parts).long()
        return self.centres.float()[mode] + self.deviation * rng.normal("toy-point", count, 2)

    def density(self, x: Tensor) -> Tensor:
        far = (x[:, None] - self.centres.to(x)).norm(dim=-1) / self.deviation
        return (-far.square() / 2).exp().mean(-1) / (2 * math.pi * self.deviation**2)

    def part(self, x: Tensor) -> Tensor:
        far, mode = (x[:, None] - self.centres.to(x)).norm(dim=-1).min(-1)
        return torch.where(far <= self.reach * self.deviation, mode, -1)

    def part_mass(self) -> float:
        return (1 - math.exp(-(self.reach**2) / 2)) / self.parts

    def cells(self, edges: Tensor = EDGES) -> Tensor:
        below = torch.special.ndtr((edges.double()[:, None, None] - self.centres) / self.deviation)
        x, y = below.diff(dim=0).unbind(-1)  # (cells, mode)
        return x @ y.T / self.parts


LAWS: dict[str, Law] = {"checkerboard": Checkerboard(), "eight-gaussians": EightGaussians()}


def histogram_kl(cells: Tensor, x: Tensor, edges: Tensor = EDGES, smoothing: float = 1e-3) -> float:
    """Σ p log(p/q) over cells, nats. cells: p, exact. q: the samples' shares (of all samples, those outside the grid
    too), mixed with `smoothing` of the uniform law over cells: an empty cell costs much, and not everything."""
    size = len(edges) - 1
    place = torch.bucketize(x.double().contiguous(), edges.to(x.device), right=True) - 1
    kept = place[((place >= 0) & (place < size)).all(-1)]
    counts = torch.bincount(kept[:, 0] * size + kept[:, 1], minlength=size**2).double()
    q = (1 - smoothing) * counts / len(x) + smoothing / size**2
    p = cells.double().flatten()
    return float((torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum())


def coverage(law: Law, x: Tensor) -> float:
    """Share of the parts whose support holds at least half of the samples that it should."""
    counts = torch.bincount(law.part(x) + 1, minlength=law.parts + 1)[1:]
    return float((counts >= law.part_mass() * len(x) / 2).double().mean())


def off_support(law: Law, x: Tensor) -> float:
    """Share of the samples on no part's support."""
    return float((~law.inside(x)).double().mean())


class PointNetwork(nn.Module):
    """G(x, t, s) for points of the plane: a plain MLP on x, its sines and cosines, and the features of both times.

    0 when fresh. waves: frequencies a coordinate, π/4, π/2, …; without them edges stay blurred for long. time_scale:
    1 to 4 is smooth, as objectives that differentiate in time need; IMM takes more. use_s: False hides s (the
    s-ablation).
    """

    def __init__(
        self, width: int = 128, depth: int = 3, time_scale: float = 2.0, waves: int = 8, use_s: bool = True
    ) -> None:
        super().__init__()
        features = 32
        self.use_s = use_s
        self.register_buffer("waves", torch.arange(1, waves + 1) * (math.pi / 4), persistent=False)
        self.time, self.target = (TimeEmbedding(features, time_scale, features) for _ in range(2))
        self.read = nn.Linear(2 + 4 * waves + 2 * features, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.write = nn.Linear(width, 2)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def forward(self, x: Tensor, t: Tensor, s: Tensor, context: None = None) -> Tensor:
        """x: (batch, 2) → the same; t, s: (batch,)."""
        angle = (x[..., None] * self.waves).flatten(-2)  # type: ignore[operator]
        at_s = self.target(s if self.use_s else torch.zeros_like(s))
        h = torch.cat([x, angle.sin(), angle.cos(), self.time(t), at_s], -1)
        for layer in (self.read, *self.layers):
            h = nn.functional.silu(layer(h))
        return self.write(h)
