"""The encoder whose states of a window are a flow's codes: any transformers model of the run's own tokens, or a run of ours."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.data.tokenizer import load_tokenizer
from training.run_dir import model_folder


@dataclass(frozen=True)
class Encoder:
    """config: what `contextual_codes.build_encoder` makes it of."""

    weights: nn.Module
    config: dict[str, Any]


def load_encoder(name: str, tokenizer: Any) -> Encoder:
    """name: of a model with its tokenizer, their folder, or a run of a trunk or of masked diffusion."""
    from transformers import AutoModel

    import flowlm.discrete.model  # noqa: F401  # registers ours
    from mtp.model import MTPForCausalLM

    folder = str(model_folder(name)) if Path(name).exists() else name
    if load_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"flow.encoder {name} has other tokens than this run: train both on the same tokens (tokenizer.kind pretrained, "
            f"tokenizer.name {name})"
        )
    try:
        kind = model_kind(folder)
        if kind == "leaplm-mtp":
            model: Any = MTPForCausalLM.from_pretrained(folder, dtype=torch.float32).trunk.base_model
        else:
            model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    except Exception as error:  # a broken file fails in as many ways as there are formats
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"flow.encoder {name} did not load: {first_line}") from error
    if kind.startswith("leaplm-") and kind not in ("leaplm-mtp", "leaplm-masked-diffusion"):
        raise ValueError(f"flow.encoder {name} is {kind}: take a run of a trunk or of masked diffusion")
    config = model.config.to_dict()
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    return Encoder(model, config)


def model_kind(folder: str) -> str:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder).model_type
