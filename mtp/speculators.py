"""Chain heads in the open layout of the "speculators" package (its 0.9): a folder of config.json and model.safetensors.

The layout is kept: which verifier the head belongs to, how many tokens it proposes, and its sizes, in the fields where that
package and what builds on it look for them. The law is none of theirs: `speculators_model_type` is leaplm-… and a program that
knows only that package's own model types reads the config and refuses the model. `read_speculator` rebuilds the head from the
folder alone. Embedding and unembedding are the verifier's and are not written.

Tensors, of hidden size d, embedding size e, V tokens, blocks of K, rank ρ and inner width m (position k = 2..K is row k − 2):

    projection.norm.weight (d,)   projection.up (K−1, d, m)   projection.down (K−1, m, d)
        f_k(h) = h + SiLU(norm(h) · up_k) · down_k; RMS norms everywhere
    readout (V, ρ)                                   W₂ᵀ: logits_k = W f_k(h) + readout · a_k; (d, ρ) where tied: + W · readout · a_k
    token.weight (V, ρ)                              W₁: a_k of a first-order chain is W₁[x_{k−1}]
    from_hidden.*, from_token.*, from_state.*        recurrent chain: their sum holds the rows of W_g, W_c and W_o, in this order
    token_norm.*, memory.*, mix.*                    GRU chain: torch's GRU over normed embeddings; a_k = SiLU(mix [f_k; r_k])
    token_norm.*, from_token.*, from_hidden.*, position (K−1, width), layers.N.*, out.*
        block chain: slots into pre-norm blocks of layers.N.{norm_1, qkv, proj, norm_2, up, down}; a_k = out of slot k − 1
"""

import json
from pathlib import Path
from typing import Any

from mtp.heads import build_head
from mtp.heads.base import JointHead
from mtp.model import MTPForCausalLM

VERSION = "0.9.0"
"""Of the layout that is followed."""
CHAINS = ("first-order-chain", "recurrent-chain", "gru-chain", "block-chain")
TYPE = "leaplm-"
WEIGHTS = "model.safetensors"


def write_speculator(model: MTPForCausalLM, folder: Path, verifier: str | None = None) -> None:
    """verifier: the trunk by name or path, for whoever loads it; None: as its config says, if it does."""
    from safetensors.torch import save_file

    config = speculator_config(model, verifier)
    folder.mkdir(parents=True, exist_ok=True)
    assert model.head is not None
    save_file({name: value.contiguous() for name, value in model.head.state_dict().items()}, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def speculator_config(model: MTPForCausalLM, verifier: str | None = None) -> dict[str, Any]:
    head: Any = model.head
    if head is None or head.name not in CHAINS:
        raise ValueError(f"speculators takes a run whose head.name is one of {', '.join(CHAINS)}")
    verifier = verifier or getattr(model.trunk.config, "name_or_path", None) or None
    proposal = {
        "proposal_type": "greedy", "speculative_tokens": head.block_size - 1, "verifier_accept_k": 1, "accept_tolerance": 0.0
    }  # fmt: skip
    config: dict[str, Any] = {
        "architectures": ["LeapChainSpeculator"],
        "speculators_model_type": TYPE + head.name,
        "speculators_version": VERSION,
        "speculators_config": {
            "algorithm": TYPE + head.name,
            "proposal_methods": [proposal],
            "default_proposal_method": "greedy",
            "verifier": {"name_or_path": verifier, "architectures": [type(model.trunk).__name__]},
        },
        "hidden_size": head.hidden_size,
        "embedding_size": model.get_input_embeddings().weight.shape[1],
        "vocab_size": head.vocab_size,
        "block_size": head.block_size,
        "rank": head.readout.shape[1],
        "tied": head.tied,
        "dtype": str(model.dtype).removeprefix("torch."),
        "head_options": model.config.head_options or {},
    }
    if head.name == "block-chain":
        config["transformer_layer_config"] = layer_config(head)
    return config


def layer_config(head: Any) -> dict[str, Any]:
    """Of the small blocks, in transformers' words."""
    block = head.layers[0]
    return {
        "model_type": TYPE + "block", "hidden_size": block.norm_1.weight.shape[0], "num_hidden_layers": len(head.layers),
        "num_attention_heads": block.num_heads, "intermediate_size": block.down.in_features, "hidden_act": "silu",
    }  # fmt: skip


def check_layout(config: dict[str, Any]) -> None:
    """ValueError where a field that the layout asks for is missing or has no meaning."""
    kinds: dict[str, type] = {
        "architectures": list, "speculators_model_type": str, "speculators_version": str, "speculators_config": dict
    }  # fmt: skip
    inner: dict[str, type] = {
        "algorithm": str, "proposal_methods": list, "default_proposal_method": str, "verifier": dict
    }  # fmt: skip
    for where, fields in ((config, kinds), (config.get("speculators_config", {}), inner)):
        for name, kind in fields.items():
            if not isinstance(where.get(name), kind) or not where[name]:
                raise ValueError(
                    f"config.json: {name} is {where.get(name)!r}, the speculators layout has a {kind.__name__}"
                )
    told = config["speculators_config"]
    methods = [method.get("proposal_type") for method in told["proposal_methods"]]
    if told["default_proposal_method"] not in methods:
        raise ValueError(
            f"config.json: default_proposal_method {told['default_proposal_method']!r} is none of {methods}"
        )
    if any(method.get("speculative_tokens", 1) < 1 for method in told["proposal_methods"]):
        raise ValueError("config.json: speculative_tokens must be 1 or above")
    if "name_or_path" not in told["verifier"] or not isinstance(told["verifier"].get("architectures"), list):
        raise ValueError("config.json: verifier has a name_or_path, which may be null, and a list of architectures")


def read_speculator(folder: Path) -> JointHead:
    """The head, from what `write_speculator` wrote and nothing else, in eval mode."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    check_layout(config)
    name = config["speculators_model_type"].removeprefix(TYPE)
    if name not in CHAINS or not config["speculators_model_type"].startswith(TYPE):
        raise ValueError(f"{folder} holds a {config['speculators_model_type']}: of ours are {', '.join(CHAINS)}")
    sizes = {key: config[key] for key in ("hidden_size", "embedding_size", "vocab_size", "block_size")}
    head = build_head(name, **sizes, **config["head_options"])
    weights = load_file(folder / WEIGHTS)
    head.to(next(iter(weights.values())).dtype).load_state_dict(weights)
    return head.eval()
