"""The samplers by which models of windows are measured, and how many calls of the network a step of them takes."""

from collections.abc import Sequence
from typing import Any

from flowlm.writing import LOCAL

DENOISERS, MAPS = ("ddim", "ddpm"), ("pushforward", "euler")
"""Of a flow that has never been told where a jump lands, and of one that has."""
BASELINES = {"leaplm-masked-diffusion": ("ancestral", "even"), "leaplm-autoregressive": ("causal",)}
"""By the model's type."""


def samplers_of(model: Any) -> tuple[str, ...]:
    flow = DENOISERS if model.generation_config.sampler == "ddim" else MAPS
    return BASELINES.get(model.config.model_type, flow)


def grid_for(model: Any, sampler: str) -> str | None:
    """Of a map's jumps, that which it was taught; of other samplers, steps between which its training looked equally often."""
    taught = getattr(model.generation_config, "grid", None)
    by_clock = "clock" if getattr(model.config, "clock", None) else None
    return by_clock if sampler in LOCAL else taught or by_clock


def passes_of(model: Any) -> tuple[int, ...]:
    """Calls of the network a step: two where it conditions on itself, or one without."""
    return (2, 1) if getattr(model.config, "self_conditioning", 0) else (1,)


def grids_of(model: Any, calls: Sequence[int], passes: int | None = None) -> tuple[int, ...]:
    """Numbers of steps that take so many calls at most, as far as the model can: a map whose codes have no table reads its
    tokens by a call more. passes: of a step, default the most."""
    passes, reading = passes or max(passes_of(model)), int(getattr(model.map, "finishes", False))
    return model.grids([(n - reading) // passes for n in calls if n >= passes + reading])
