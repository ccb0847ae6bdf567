"""The image objectives as they are compared: options of each, how far a training what is paced runs, and how each is drawn from."""

from collections.abc import Sequence
from typing import Any

SMOOTH = (
    "lagrangian", "terminal-velocity", "progressive", "improved-mean-flow", "mean-flow", "eulerian", "alpha-flow", "trajectory",
    "continuous-consistency",
)  # fmt: skip
"""Objectives that differentiate in time, or walk through it in small steps: their embedding is smooth in it."""
OPTIONS: dict[str, dict[str, Any]] = {"imm": {"k": 12, "group_size": 4, "weighted": False}}
"""Tuned on seed 0 of digits; RESULTS.md lists the trials. What is not named has its own defaults."""
PACED = {"alpha-flow": ("end", 1.0), "consistency": ("stage", 0.125), "continuous-consistency": ("warmup", 0.25)}
"""What runs its course over a share of the training: an option, in steps."""
STEPS = (1, 2, 4, 8, 16, 50)
EULER_STEPS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 32, 50)
"""Of flow matching, so that the number that matches a one-step map can be read off."""


def time_scale(objective: str) -> float:
    return 4.0 if objective in SMOOTH else 1000.0


def options_of(objective: str, steps: int) -> dict[str, Any]:
    """steps: of the training."""
    options = dict(OPTIONS.get(objective, {}))
    if objective in PACED:
        option, share = PACED[objective]
        options[option] = max(1, round(share * steps))
    return options


def counts_of(sampler: str, most: int | None, all_steps: Sequence[int] = STEPS) -> tuple[int, ...]:
    """Numbers of steps at which a model is drawn from. most: that it was trained for, None for any."""
    counts = EULER_STEPS if sampler in ("euler", "ddim") else all_steps
    return tuple(count for count in counts if most is None or count <= most)
