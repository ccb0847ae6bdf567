"""What every objective takes and gives, so that any method can stand in for any other."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from flowmap.attention import differentiable
from flowmap.path import LinearPath, Path
from flowmap.rng import Rng


@dataclass(frozen=True)
class Loss:
    """A sum, not a mean: the training loop adds sums over slices and divides once.

    sum: scalar to differentiate. count: scalar, what the sum is divided by.
    metrics: name → (sum, count), both detached scalars, added over slices like the loss itself.
    statistics: what the objective wants to hear of the whole global batch, detached sums, added over slices and ranks.
    few_step: the part of sum that is not about the diagonal s = t, where a method has one.
    """

    sum: Tensor
    count: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)
    few_step: Tensor | None = None


@dataclass(frozen=True)
class StateBatch:
    """A slice of clean states. x_0: (batch, *state); context: what the map's network takes, indexable by rows."""

    x_0: Tensor
    context: Any = None

    @property
    def size(self) -> int:
        return len(self.x_0)

    def to(self, device: torch.device) -> "StateBatch":
        return StateBatch(self.x_0.to(device), None if self.context is None else self.context.to(device))


class Objective(nn.Module):
    """A loss with whatever it learns on the way (a clock, a log-weight) as its own parameters.

    coupling says what a slice of a global batch must hold together: "sample" (nothing), "group"
    (groups of `group_size` never straddle a slice) or "batch" (the whole global batch).
    each_token: whether it holds where states that see each other have times of their own.
    teacher_decay: of the moving average of the weights that `teacher` is; None: it needs no teacher.
    low_discrepancy: times are spread evenly over the global batch (`Rng.place`); spreads: whether they can be, where a method
    takes no law of times.
    sampler: of `flowmap.samplers`, by which what it trains is drawn from; most_steps: of that sampler, None for any number.
    time_scale: of the network's time embeddings, unless told otherwise: 1000 tells near times apart, a few units are smooth, for
    what differentiates in time or walks through it in small steps.
    takes_classes: whether samples may be of given classes. bound: whether it learns from what the map says near the data, where the
    parameterisation has to hold it to the data. version: of what the same options compute, raised when that changes.
    """

    coupling: ClassVar[Literal["sample", "group", "batch"]] = "sample"
    each_token: ClassVar[bool] = False
    spreads: ClassVar[bool] = False
    sampler: ClassVar[str] = "pushforward"
    most_steps: ClassVar[int | None] = None
    time_scale: ClassVar[float] = 1000.0
    takes_classes: ClassVar[bool] = True
    bound: ClassVar[bool] = False
    version: ClassVar[int | None] = None
    group_size: int = 1
    teacher_decay: float | None = None
    low_discrepancy: bool = False

    def forward(self, model: nn.Module, batch: Any, *, teacher: nn.Module | None = None, rng: Rng, step: int) -> Loss:
        raise NotImplementedError

    def check_path(self, path: Path) -> None:
        """Raises ValueError where the method rests on identities that this path has not."""

    def learn(self, statistics: dict[str, Tensor]) -> None:
        """Called after every optimizer step, with the statistics of its global batch."""


def require_linear(objective: Objective, path: Path) -> None:
    if not isinstance(path, LinearPath):
        raise ValueError(f"{type(objective).__name__} uses identities of the linear path, not of {path}")


def mean_square(x: Tensor) -> Tensor:
    """(batch, *state) → (batch,), over elements, in fp32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).square().flatten(1).mean(1)


def derivative(
    function: Callable[..., Tensor],
    point: tuple[Tensor, Tensor, Tensor],
    direction: tuple[Tensor | None, float, float],
    context: Any = None,
) -> tuple[Tensor, Tensor]:
    """(v, dv) of v(x_t, t, s), a map's velocity or logits, along (dx, dt, ds), in forward mode and at full precision.
    dx None: x held still.

    Gradients flow through both where they are enabled.
    """
    x, t, s = point
    dx, dt, ds = direction
    tangents = (torch.zeros_like(x) if dx is None else dx, torch.full_like(t, dt), torch.full_like(s, ds))
    with differentiable(), torch.autocast(x.device.type, enabled=False):
        v, dv = torch.func.jvp(lambda *at: function(*at, context), point, tangents)  # type: ignore[misc]
    return v, dv
