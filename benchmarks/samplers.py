"""The samplers by which models of windows are measured, and how many calls of the network a step of them takes."""

from collections.abc import Sequence
from typing import Any

DENOISERS, MAPS, TAUGHT = ("ddim", "ddpm"), ("pushforward", "euler"), ("pushforward", "restart", "euler")
"""Of a flow that has never been told where a jump lands, of one that has, and of one that was taught the jumps that it makes."""
ANCESTRAL = ("ancestral", "ddpm")
"""Of one that was trained for what so many ancestral steps are charged for: those, and on even times."""
RENOISE = 0.7
"""Of restarts: the share of a state's noise that is fresh."""
GRID = "closing"
"""Of flows with a clock, taught jumps or none: to eight calls better than even shares of it, at sixteen as good (leap, FLM)."""
TEMPERATURES = ((0.0, 1.0), (0.7, 1.0), (1.0, 1.0))
SCORE_TEMPERATURES = ((0.0, 1.0), (1.0, 0.8), (1.0, 1.0), (1.0, 1.2))
"""(temperature of the tokens' draw, score temperature) at which samples are judged; of flows the latter, where they can."""
FEWEST = {"restart": 2}
"""Steps that are another way to write than pushforward's one."""
BASELINES = {"leaplm-masked-diffusion": ("ancestral", "even"), "leaplm-autoregressive": ("causal",)}
"""By the model's type."""


def samplers_of(model: Any) -> tuple[str, ...]:
    """Of a flow of blocks the first alone: every length and number of steps is a way of its own."""
    if getattr(model.config, "grids", None):
        return ANCESTRAL
    maps = TAUGHT if getattr(model.generation_config, "grid", None) else MAPS
    flow = DENOISERS if model.generation_config.sampler == "ddim" else maps
    return BASELINES.get(model.config.model_type, flow[:1] if model.config.block_lengths else flow)


def told_for(model: Any, sampler: str) -> dict[str, Any]:
    """What a model is asked besides: the grid of the jumps which it was taught, else GRID where it has a clock; of restarts the
    share of fresh noise."""
    taught = getattr(model.generation_config, "grid", None)
    grid = taught or (GRID if getattr(model.config, "clock", None) else None)
    told = {"grid": grid, "renoise": RENOISE if sampler == "restart" else None}
    return {name: value for name, value in told.items() if value is not None}


def knobs_of(model: Any, steps: int) -> tuple[tuple[float, float], ...]:
    """At which its samples of so many steps are judged: where the temperature of the last softmax moves no entropy, that of those
    before it. A decoder's own temperature moves it as an autoregressive model's does."""
    scored = steps > 1 and "score_temperature" in model.generation_config_class.extras
    return SCORE_TEMPERATURES if scored and not model.map.finishes and model.map.rounding is None else TEMPERATURES


def passes_of(model: Any) -> tuple[int, ...]:
    """Calls of the network a step: two where it conditions on itself, or one without."""
    return (2, 1) if getattr(model.config, "self_conditioning", 0) else (1,)


def grids_of(model: Any, calls: Sequence[int], passes: int | None = None) -> tuple[int, ...]:
    """Numbers of steps that take so many calls at most, as far as the model can: a map whose codes have no table reads its
    tokens by a call more. passes: of a step, default the most."""
    passes, reading = passes or max(passes_of(model)), int(getattr(model.map, "finishes", False))
    return model.grids([(n - reading) // passes for n in calls if n >= passes + reading])
