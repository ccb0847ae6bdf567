"""What a flow language model may learn from besides data: the weights of an earlier model, or its frozen denoiser. name:
of the earlier one, in what is said of a mistake."""

from typing import Any

import torch

from flowlm.model import FlowLM


def begin_with(model: FlowLM, earlier: FlowLM, name: str) -> None:
    """Its weights in the place of the fresh ones. A part that only the new model has keeps its own, at zero effect: a second
    pass's input is read by a layer of its own."""
    old, new = earlier.map.state_dict(), model.map.state_dict()
    old.pop("prior_share", None)  # how far its prior was brought in is its training's own
    wrong = [n for n, w in old.items() if n not in new or new[n].shape != w.shape]
    if wrong:
        shape = tuple(new[wrong[0]].shape) if wrong[0] in new else "missing"
        raise ValueError(f"{name} has {wrong[0]} of {tuple(old[wrong[0]].shape)}, here {shape}: sizes differ")
    there, here = ({**(one.config.backbone or {}), "attention": None} for one in (earlier, model))
    for field in sorted(set(there) & set(here)):
        if there[field] != here[field]:
            raise ValueError(f"{name} has {field} {there[field]!r}, here {here[field]!r}: they must agree")
    extra = {n: torch.zeros_like(w) if "read_self" in n else w for n, w in new.items() if n not in old}
    model.map.load_state_dict(old | extra)


def teach_from(objective: Any, teacher: FlowLM, model: FlowLM, name: str) -> None:
    """The teacher's denoiser becomes what the objective learns from."""
    require_jumps(objective, "flow.teacher")
    ours = model.config
    for field in ("codebook", "state_size", "path", "noise_scale", "length"):
        if getattr(teacher.config, field) != getattr(ours, field):
            raise ValueError(
                f"{name} has {field} {getattr(teacher.config, field)!r}, this run {getattr(ours, field)!r}: they must agree"
            )
    frozen = teacher.map.requires_grad_(False)
    model.map.codebook.load_state_dict(frozen.codebook.state_dict())
    model.map.codebook.requires_grad_(False)
    objective.frozen = (frozen,)


def denoise_first(objective: Any, share: float | None, steps: int) -> None:
    """In this share of the steps the denoiser alone is trained."""
    if share:
        require_jumps(objective, "flow.denoiser_first")
        objective.denoiser_steps = round(share * steps)


def require_jumps(objective: Any, section: str) -> None:
    if not hasattr(objective, "frozen") or getattr(objective, "diagonal", 1.0) == 1.0:
        raise ValueError(f"{section} needs a few-step objective such as kl-psd, not {type(objective).__name__}")
