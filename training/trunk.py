"""The trunk: any causal LM of transformers, by name, from a run, or fresh from a config."""

import difflib
import hashlib
from typing import Any

import torch

from mtp.model import MTPForCausalLM
from training.config import TrunkConfig
from training.run_dir import model_folder


def trunk_folder(name: str) -> str:
    """Where a pretrained trunk and its tokenizer lie: a run's newest model, or the name itself."""
    try:
        return str(model_folder(name))
    except ValueError:
        return name


def pretrained_trunk(name: str) -> Any:
    """A leaplm run gives its trunk without its head."""
    from transformers import AutoConfig, AutoModelForCausalLM

    source = trunk_folder(name)
    try:
        config = without_dropout(AutoConfig.from_pretrained(source))
        model = AutoModelForCausalLM.from_pretrained(source, config=config, dtype=torch.float32)
    except Exception as error:  # a broken file fails in as many ways as there are formats
        raise ValueError(f"trunk.pretrained {name!r} did not load: {first_line(error)}") from error
    return model.trunk if isinstance(model, MTPForCausalLM) else model


def load_head(model: MTPForCausalLM, name: str) -> None:
    """The head of another run, with the weights it keeps for use, into a model of the same shape."""
    from transformers import AutoModelForCausalLM

    if model.head is None:
        raise ValueError("head.start needs head.name")
    try:
        other = AutoModelForCausalLM.from_pretrained(str(model_folder(name)), dtype=torch.float32)
    except Exception as error:  # a broken file fails in as many ways as there are formats
        raise ValueError(f"head.start {name!r} did not load: {first_line(error)}") from error
    held = getattr(other, "head", None)
    if held is None:
        raise ValueError(f"head.start {name!r} has no joint head")
    wanted, found = ({key: tuple(x.shape) for key, x in head.state_dict().items()} for head in (model.head, held))
    if (type(held), held.block_size, found) != (type(model.head), model.head.block_size, wanted):
        raise ValueError(
            f"head.start {name!r} is a {held.name} of {held.block_size} tokens and other sizes than this {model.head.name} "
            f"of {model.head.block_size}: set head.name, head.block_size, head.rank and head.options to its own"
        )
    model.head.load_state_dict(held.state_dict())


def new_trunk(config: TrunkConfig, tokenizer: Any, length: int) -> Any:
    """From scratch. length: the longest window it must read."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    if config.architecture not in CONFIG_MAPPING:
        near = difflib.get_close_matches(config.architecture, list(CONFIG_MAPPING), 1)
        hint = f"did you mean {near[0]!r}?" if near else "take llama, qwen3, gpt2, …"
        raise ValueError(f"trunk.architecture {config.architecture!r} is no model type of transformers: {hint}")
    kind = CONFIG_MAPPING[config.architecture]
    default = kind()
    for key in config.config:
        if not hasattr(default, key):
            near = difflib.get_close_matches(key, list(default.to_dict()), 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"trunk.config.{key} is no field of {kind.__name__}{hint}")
    # no pad_token_id: architectures give it a dead embedding, and here it is the end token, which begins every text
    names = ("bos_token_id", "eos_token_id")
    fields = {"vocab_size": len(tokenizer), **{name: getattr(tokenizer, name) for name in names}, **config.config}
    if "num_attention_heads" in fields:  # some architectures keep one number of key heads for every size
        fields.setdefault("num_key_value_heads", fields["num_attention_heads"])
    try:
        fresh = without_dropout(kind(**{"pad_token_id": None, **fields}))
        model = AutoModelForCausalLM.from_config(fresh, dtype=torch.float32)
    except Exception as error:  # configurations fail in as many ways as there are architectures
        raise ValueError(f"trunk.config does not make a {config.architecture}: {first_line(error)}") from error
    limit = getattr(fresh, "max_position_embeddings", None)
    if limit and length > limit:
        raise ValueError(f"data.length {length} is above the trunk's max_position_embeddings {limit}")
    return model


def weights_digest(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:20]


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def without_dropout(config: Any) -> Any:
    """Dropout draws from the process's own stream, so it would make the result depend on world size."""
    for key, value in config.to_dict().items():
        if key.endswith(("dropout", "_drop", "pdrop")) and isinstance(value, float) and value > 0:
            setattr(config, key, 0.0)
    return config
