"""What a flow language model may learn from besides data: the weights of an earlier run, or its frozen denoiser."""

from typing import Any

import torch

from flowlm.model import FlowLM
from training.data.tokenizer import load_tokenizer
from training.run_dir import model_folder


def earlier(run: str, tokenizer: Any, section: str) -> FlowLM:
    """The model of an earlier run, of the same tokens; section names it in what is said of a mistake."""
    folder = model_folder(run)
    if load_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
        raise ValueError(f"{section} {run} has other tokens than this run: train both on the same data and tokenizer")
    try:
        return FlowLM.from_pretrained(folder, dtype=torch.float32)
    except Exception as error:  # a broken file fails in as many ways as there are formats
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{section} {run} did not load: {first_line}") from error


def begin_with(model: FlowLM, run: str, tokenizer: Any) -> None:
    """Its weights in the place of the fresh ones. A part that only the new model has keeps its own, at zero effect: a second
    pass's input is read by a layer of its own."""
    old, new = earlier(run, tokenizer, "flow.start").map.state_dict(), model.map.state_dict()
    wrong = [n for n, w in old.items() if n not in new or new[n].shape != w.shape]
    if wrong:
        shape = tuple(new[wrong[0]].shape) if wrong[0] in new else "missing"
        raise ValueError(f"flow.start {run} has {wrong[0]} of {tuple(old[wrong[0]].shape)}, here {shape}: sizes differ")
    extra = {n: torch.zeros_like(w) if "read_self" in n else w for n, w in new.items() if n not in old}
    model.map.load_state_dict(old | extra)


def teach_from(objective: Any, run: str, model: FlowLM, tokenizer: Any, device: torch.device) -> None:
    """The run's denoiser becomes what the objective learns from."""
    if not hasattr(objective, "frozen") or getattr(objective, "diagonal", 1.0) == 1.0:
        raise ValueError(f"flow.teacher needs a few-step objective such as kl-psd, not {type(objective).__name__}")
    teacher = earlier(run, tokenizer, "flow.teacher")
    ours = model.config
    for name in ("codebook", "state_size", "path", "length"):
        if getattr(teacher.config, name) != getattr(ours, name):
            raise ValueError(
                f"flow.teacher {run} has {name} {getattr(teacher.config, name)!r}, this run {getattr(ours, name)!r}: they must agree"
            )
    frozen = teacher.map.to(device).requires_grad_(False)
    model.map.codebook.load_state_dict(frozen.codebook.state_dict())
    model.map.codebook.requires_grad_(False)
    objective.frozen = (frozen,)
