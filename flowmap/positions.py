"""How the backbone's states know their places: learned vectors that are added, or rotations of queries and keys."""

import math

import torch
from torch import Tensor, nn


class LearnedPositions(nn.Module):
    """A vector a place; in two dimensions one a row and one a column, added. sizes: (places,), or (rows, columns)."""

    def __init__(self, sizes: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.held = math.prod(sizes)
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in sizes)

    def forward(self, places: Tensor) -> Tensor:
        if len(self.tables) == 1:  # no slice of the weight: outside of gradients it would still ask for some
            return self.tables[0](places)
        rows, columns = (table.weight for table in self.tables)
        return (rows[:, None] + columns).flatten(0, 1)[places]  # type: ignore[operator,index]


class Rotary:
    """RoPE (2104.09864): pairs of a head's coordinates turn by angles in proportion to the position; in two
    dimensions the first half by the row, the second by the column. A prefix counts from 0 and the states go on after
    it; beside a grid it does not turn."""

    def __init__(self, size: int, grid: tuple[int, int] | None = None) -> None:
        """size: coordinates of a head. grid: (rows, columns)."""
        self.size, self.grid = size, grid

    def __call__(self, past: int, num_prefix: int, prefixed: int, places: Tensor):
        """past: states in the cache, prefixed of them a prefix. places: (count,), of the states behind num_prefix more of it."""
        if self.grid is None:
            before = torch.arange(past, past + num_prefix, device=places.device)
            turns = [torch.cat([before, prefixed + num_prefix + places])]
        else:
            zero = places.new_zeros(num_prefix)
            turns = [torch.cat([zero, part]) for part in (places // self.grid[1], places % self.grid[1])]
        share = self.size // (2 * len(turns))
        wheels: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

        def wheel(kind: torch.dtype) -> tuple[Tensor, Tensor]:
            rates = 10_000.0 ** -(torch.arange(share, device=places.device, dtype=kind) / share)
            angle = torch.cat([place[:, None] * rates for place in turns], -1)  # (n, size/2)
            return angle.cos(), angle.sin()

        def turn(x: Tensor) -> Tensor:
            kind = torch.promote_types(x.dtype, torch.float32)
            if kind not in wheels:
                wheels[kind] = wheel(kind)
            cos, sin = wheels[kind]
            a, b = x.to(kind).chunk(2, -1)
            return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

        return turn
