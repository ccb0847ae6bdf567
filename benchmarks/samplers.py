"""The samplers by which models of windows are measured, and how many calls of the network a step of them takes."""

from collections.abc import Sequence
from typing import Any

SAMPLERS = {
    "leaplm-flow": ("pushforward", "euler"),
    "leaplm-masked-diffusion": ("ancestral", "even"),
    "leaplm-autoregressive": ("causal",),
}
"""By the model's type."""


def samplers_of(model: Any) -> tuple[str, ...]:
    return SAMPLERS[model.config.model_type]


def grids_of(model: Any, calls: Sequence[int]) -> tuple[int, ...]:
    """Numbers of steps that take so many calls, as far as the model can: two calls a step where it conditions on itself."""
    passes = 2 if getattr(model.config, "self_conditioning", 0) else 1
    return model.grids([n // passes for n in calls if n >= passes])
