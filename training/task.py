"""What the loop needs to know of a task, whatever is being trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from flowmap.objectives.base import Objective


class Batches(Protocol):
    def batch(self, step: int, samples: Tensor) -> Any:
        """These samples of global batch `step`: a pure function of both and of the run's seed."""


@dataclass(frozen=True)
class Task:
    """model: what the objective is given. trainable: the part of it that is optimised and averaged,
    found under `prefix` in the model's state. validation: a fixed list of batches' makers.
    save(folder, state): write a from_pretrained folder with these weights. facts: for the record. probe: more
    validation metrics, of the weights as they stand. begin(step): before each step, for what depends on it in the model.
    idle(step): weights that this step has no use for, which no optimizer is to touch: a gradient of zero would still decay them, and take
    their second moment for settled. project: the few-step part of the gradient gives way to the rest."""

    model: nn.Module
    trainable: nn.Module
    prefix: str
    objective: Objective
    train: Batches
    train_seed: int
    validation: Sequence[Callable[[], Any]]
    save: Callable[[Path, dict[str, Tensor]], None]
    facts: dict[str, Any] = field(default_factory=dict)
    probe: Callable[[], dict[str, float]] | None = None
    begin: Callable[[int], None] | None = None
    idle: Callable[[int], Sequence[nn.Parameter]] | None = None
    project: bool = False
