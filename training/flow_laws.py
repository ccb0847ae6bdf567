"""Laws of time by their name in a flow language model's configuration."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from flowmap.clocks import Gumbel, Monotone, Running
from flowmap.schedule import DecodeError
from flowmap.sphere import TOKEN_PATHS
from training.objectives import TIMES

if TYPE_CHECKING:  # its fields alone are read
    from training.map_fields import FlowConfig


def laws_of(plan: FlowConfig, size: int) -> dict[str, Any]:
    """Those of images and those that learn where tokens are decided; for one-hot codes it is known."""
    path = TOKEN_PATHS[plan.path](plan.noise_scale)
    laws: dict[str, Any] = {**TIMES, "running": Running}
    if plan.path == "slerp":  # what follows looks at signal and noise
        return laws
    laws["gumbel"] = partial(Gumbel, path)
    if plan.codebook == "one-hot":
        law = partial(DecodeError, size, path)
        laws |= {"decode-error": law, "decode-error-mixed": partial(law, uniform=0.1)}
    if plan.objective == "vlb":
        ends: dict[str, Any] = {name: plan.options[name] for name in ("t_min", "t_max") if name in plan.options}
        laws["learned"] = partial(Monotone, path, **ends)
    return laws
