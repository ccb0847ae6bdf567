"""What every objective takes and gives, so that any method can stand in for any other."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from flowmap.rng import Rng


@dataclass(frozen=True)
class Loss:
    """A sum, not a mean: the training loop adds sums over slices and divides once.

    sum: scalar to differentiate. count: scalar, what the sum is divided by.
    metrics: name → (sum, count), both detached scalars, added over slices like the loss itself.
    """

    sum: Tensor
    count: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Objective(nn.Module):
    """A loss with whatever it learns on the way (a clock, a log-weight) as its own parameters.

    coupling says what a slice of a global batch must hold together: "sample" (nothing), "group"
    (groups of fixed size never straddle a slice) or "batch" (the whole global batch).
    """

    coupling: ClassVar[Literal["sample", "group", "batch"]] = "sample"

    def forward(self, model: nn.Module, batch: Any, *, teacher: nn.Module | None = None, rng: Rng, step: int) -> Loss:
        raise NotImplementedError
