"""Laws of time by their name in a flow language model's configuration."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from flowmap.clocks import Gumbel, Monotone, Running
from flowmap.schedule import DecodeError
from flowmap.sphere import TOKEN_PATHS
from flowmap.times import TimeLaw, Uniform
from training.objectives import TIMES

if TYPE_CHECKING:  # its fields alone are read
    from training.map_fields import FlowConfig


POINTS = 129
"""Of the quantiles that are kept."""


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


@torch.no_grad()
def quantiles(objective: Any, path: Any) -> list[float] | None:
    """Of the times that an objective looks at, as its law stands, rising to 1; None where they are even."""
    own = getattr(objective, "objective", objective)
    law = getattr(own, "times", None) or getattr(own, "signal", None)
    if law is None or isinstance(law, Uniform):
        return None
    number = next(iter((*law.parameters(), *law.buffers())), torch.zeros(()))  # a law's own numbers say where it stands
    u = torch.linspace(0, 1, POINTS, dtype=torch.float64, device=number.device).clamp(1e-9, 1 - 1e-9)
    times = law.time_of(u) if isinstance(law, TimeLaw) else law.draw(path, u).t
    return [*times.double().sort().values[:-1].clamp(0, 1).tolist(), 1.0]
