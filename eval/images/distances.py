"""Distances between two sets of points, each with what sampling alone does to it. Rows are points.

x are samples, y what they are compared with; a standard error is over the samples, with y held fixed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor], Tensor]
ROWS = 500
"""Rows of a pairwise matrix that are held at once."""


@dataclass(frozen=True)
class Estimate:
    value: float
    stderr: float | None = None


def mean_of(values: Tensor) -> Estimate:
    """A mean over samples."""
    return Estimate(float(values.double().mean()), float(values.double().std() / len(values) ** 0.5))


def bootstrap(statistic: Callable[[Tensor], float], uniform: Tensor) -> float:
    """Deviation of a statistic of resampled rows; uniform: (repeats, n) in [0, 1)."""
    drawn = (uniform * uniform.shape[1]).long()
    return float(torch.tensor([statistic(index) for index in drawn], dtype=torch.float64).std())


def polynomial(x: Tensor, y: Tensor) -> Tensor:
    """(x·y / d + 1)³, the kernel of KID (1801.01401)."""
    base = x @ y.T / x.shape[1] + 1
    return base * base.square()


def negative_distance(x: Tensor, y: Tensor) -> Tensor:
    """−‖x − y‖; the MMD² of this kernel is the energy distance 2E‖x − y‖ − E‖x − x'‖ − E‖y − y'‖ (1207.6076)."""
    return -torch.cdist(x, y)


def within(kernel: Kernel, x: Tensor) -> Tensor:
    """(n,): mean of k(x_i, x_j) over j ≠ i."""
    sums = []
    for low in range(0, len(x), ROWS):
        rows = kernel(x[low : low + ROWS], x).double()
        sums.append(rows.sum(1) - rows.diagonal(low))
    return torch.cat(sums) / (len(x) - 1)


def across(kernel: Kernel, x: Tensor, y: Tensor) -> Tensor:
    """(n,): mean of k(x_i, y_j) over j."""
    return torch.cat([kernel(rows, y).double().mean(1) for rows in x.split(ROWS)])


def squared_mmd(kernel: Kernel, x: Tensor, y: Tensor, within_y: float | None = None) -> Estimate:
    """The unbiased E k(x,x') − 2E k(x,y) + E k(y,y'), which can be negative (0805.2368).

    Its error is that of its linear part, 2(E k(x_i,x') − E k(x_i,y)). within_y: E k(y,y') if it is known.
    """
    own, other = within(kernel, x), across(kernel, x, y)
    if within_y is None:
        within_y = float(within(kernel, y).mean())
    error = 2 * float((own - other).std()) / len(x) ** 0.5
    return Estimate(float(own.mean() - 2 * other.mean()) + within_y, error)


def squared_w2(a: Tensor, b: Tensor) -> Tensor:
    """Exact W₂² on the line, column by column: a (n, k) and b (m, k), each column sorted. Returns (k,).

    ∫ (F⁻¹(u) − G⁻¹(u))² du: both quantile functions are constant between multiples of 1/n and 1/m.
    """
    n, m = len(a), len(b)
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()  # in units of 1/(nm)
    widths = ends.diff(prepend=ends.new_zeros(1)).to(a.dtype) / (n * m)
    return widths @ (a[(ends - 1) // m] - b[(ends - 1) // n]).square()


def sliced_w2(x: Tensor, y: Tensor, directions: Tensor, uniform: Tensor) -> Estimate:
    """√ of the mean W₂² over projections (directions: (d, k) of unit columns)."""
    a, b = (x @ directions), (y @ directions).sort(0).values

    def statistic(rows: Tensor) -> float:
        return float(squared_w2(rows.sort(0).values, b).double().mean().sqrt())

    return Estimate(statistic(a), bootstrap(lambda index: statistic(a[index]), uniform))


def inside(x: Tensor, y: Tensor, neighbours: int = 3) -> Tensor:
    """(n,) bool: does x_i lie within some y_j's distance to its own k-th nearest neighbour (1904.06991, eq. 1)?"""
    found = torch.zeros(len(x), dtype=torch.bool)
    for low in range(0, len(y), ROWS):
        centres = y[low : low + ROWS]
        distance = torch.cdist(centres, y)
        own = torch.arange(len(centres))
        distance[own, own + low] = torch.inf
        radius = distance.kthvalue(neighbours, dim=1).values
        found |= (torch.cdist(x, centres) <= radius).any(1)
    return found


def nearest(x: Tensor, y: Tensor) -> Tensor:
    """(n,): ‖x_i − y_j‖ to the nearest y_j. The product only finds j: the distance itself is exact, 0 for a copy."""
    squares = y.square().sum(1)
    found = [torch.addmm(squares, rows, y.T, alpha=-2).argmin(1) for rows in x.split(ROWS)]
    return (x - y[torch.cat(found)]).norm(dim=1)


def histogram_entropy(labels: Tensor, num_classes: int) -> Estimate:
    """Nats of the class histogram, with its first-order error."""
    p = torch.bincount(labels, minlength=num_classes).double() / len(labels)
    surprise = -p.clamp_min(1e-300).log()
    entropy = float((p * surprise).sum())
    variance = float((p * surprise.square()).sum()) - entropy**2
    return Estimate(entropy, (max(variance, 0.0) / len(labels)) ** 0.5)
