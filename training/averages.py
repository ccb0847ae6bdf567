"""Moving averages of a task's weights: one to be evaluated and saved, one that the objective may learn from."""

import contextlib

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from training.task import Task


def moving_average(decay: float):
    """EMA whose memory grows with the run, min(decay, (1+n)/(10+n)), so that short runs forget their start."""

    def update(averaged, current, num_averaged) -> None:
        n = int(num_averaged)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return update


def teacher_of(task: Task) -> AveragedModel | None:
    """The average that the objective asks for, at its own decay: it changes what is learned, the other what is kept."""
    decay = task.objective.teacher_decay
    if decay is None:
        return None
    teacher = AveragedModel(task.trainable, multi_avg_fn=moving_average(decay))
    return teacher.requires_grad_(False)


def averaged_state(task: Task, average: AveragedModel | None) -> dict[str, Tensor]:
    """The model's state with the averaged weights in it."""
    state = dict(task.model.state_dict())
    if average:
        state |= {task.prefix + name: value for name, value in average.module.state_dict().items()}
    return state


@contextlib.contextmanager
def swapped(task: Task, average: AveragedModel | None):
    """Put the averaged weights in place for the time of an evaluation."""
    if average is None:
        yield
        return
    pairs = list(zip(task.trainable.parameters(), average.module.parameters(), strict=True))

    def swap() -> None:
        for own, averaged in pairs:
            own.data, averaged.data = averaged.data, own.data

    swap()
    try:
        yield
    finally:
        swap()
