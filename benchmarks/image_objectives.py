"""The image objectives as they are compared: options of each, how far a training what is paced runs, and how each is drawn from."""

from collections.abc import Sequence
from typing import Any

OPTIONS: dict[str, dict[str, Any]] = {
    "flow-matching": {"times": "logit-normal"},
    "imm": {"k": 12, "group_size": 4, "weighted": False},
    "mean-flow": {"power": 0.4},
    "improved-mean-flow": {"power": 0.4},
}  # fmt: skip
"""Chosen on digits: IMM's on the test split, before there was a selection split; flow matching's and improved MeanFlow's on that, and
MeanFlow's after its successor. RESULTS.md lists the trials. What is not named has its own defaults."""
FIELDS: dict[str, dict[str, Any]] = {"shortcut": {"optimizer__weight_decay": 0.1}}
"""Of the run, as the method's paper asks."""
PACED = {
    "alpha-flow": ("end", 1.0),
    "consistency": ("stage", 0.125),
    "consistency-map": ("stage", 0.125),
    "continuous-consistency": ("warmup", 0.25),
}
"""What runs its course over a share of the training: an option, in steps."""
STEPS = (1, 2, 4, 8, 16, 50)
EULER_STEPS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 32, 50)
"""Of flow matching, so that the number that matches a one-step map can be read off."""


def options_of(objective: str, steps: int) -> dict[str, Any]:
    """steps: of the training."""
    options = dict(OPTIONS.get(objective, {}))
    if objective in PACED:
        option, share = PACED[objective]
        options[option] = max(1, round(share * steps))
    return options


def counts_of(sampler: str, most: int | None, all_steps: Sequence[int] = ()) -> tuple[int, ...]:
    """Numbers of steps at which a model is drawn from. most: that it was trained for, None for any."""
    counts = EULER_STEPS if sampler in ("euler", "ddim") else all_steps or STEPS
    if sampler == "shortcut":
        counts = [count for count in counts if count & (count - 1) == 0]
    return tuple(count for count in counts if most is None or count <= most)
