"""Kernels on states, and the maximum mean discrepancy between two small groups of them.

Distances in fp32 or better; the square is clamped before the root, since a root at zero has no gradient.
x: (groups, M, D), y: (groups, N, D) → (groups, M, N). bandwidth: (groups,) multiplies the distance.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

SMALL = 1e-8


def distances(x: Tensor, y: Tensor) -> Tensor:
    """‖x_i − y_j‖ = √max(‖·‖², 1e-8)."""
    kind = torch.promote_types(x.dtype, torch.float32)
    return (x.to(kind)[..., :, None, :] - y.to(kind)[..., None, :, :]).square().sum(-1).clamp_min(SMALL).sqrt()


class Kernel(Protocol):
    def __call__(self, x: Tensor, y: Tensor, bandwidth: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Laplace:
    """exp(−w̃‖x−y‖/D), as IMM publishes it (2503.07565); with sharpness κ: exp(−κ w̃‖x−y‖/√D), which is
    as flat in two dimensions as in three thousand."""

    sharpness: float | None = None

    def __call__(self, x: Tensor, y: Tensor, bandwidth: Tensor) -> Tensor:
        size = x.shape[-1]
        scale = 1 / size if self.sharpness is None else self.sharpness / size**0.5
        return (-bandwidth[:, None, None] * scale * distances(x, y)).exp()


@dataclass(frozen=True)
class RBF:
    """exp(−(κ w̃)²‖x−y‖²/2D)."""

    sharpness: float = 1.0

    def __call__(self, x: Tensor, y: Tensor, bandwidth: Tensor) -> Tensor:
        scaled = self.sharpness * bandwidth[:, None, None] * distances(x, y)
        return (-scaled.square() / (2 * x.shape[-1])).exp()


@dataclass(frozen=True)
class Energy:
    """−w̃‖x−y‖/√D, the kernel of the energy distance (conditionally positive definite)."""

    def __call__(self, x: Tensor, y: Tensor, bandwidth: Tensor) -> Tensor:
        return -bandwidth[:, None, None] * distances(x, y) / x.shape[-1] ** 0.5


KERNELS: dict[str, Kernel] = {
    "laplace": Laplace(),
    "laplace-flat": Laplace(sharpness=0.05),
    "rbf": RBF(),
    "energy": Energy(),
}

Statistic = Literal["v", "u", "paired-u"]


def mmd2(kernel: Kernel, x: Tensor, y: Tensor, bandwidth: Tensor, statistic: Statistic = "v") -> Tensor:
    """(groups,): E k(x,x') + E k(y,y') − 2 E k(x,y) over groups of M.

    v: every pair, the diagonal included (biased, as IMM trains). u: no pair with itself, every cross pair.
    paired-u: also without the cross pairs (x_j, y_j), which share their noise: unbiased for such pairs.
    """
    own, other, cross = kernel(x, x, bandwidth), kernel(y, y, bandwidth), kernel(x, y, bandwidth)
    if statistic == "v":
        return (own + other - 2 * cross).mean((-2, -1))
    size = x.shape[-2]
    if size < 2 or y.shape[-2] != size:
        raise ValueError(f"statistic {statistic!r} needs two groups of one size of at least 2")
    off = 1 - torch.eye(size, dtype=own.dtype, device=own.device)
    inside = ((own + other) * off).sum((-2, -1)) / (size * (size - 1))
    if statistic == "u":
        return inside - 2 * cross.mean((-2, -1))
    return inside - 2 * (cross * off).sum((-2, -1)) / (size * (size - 1))
