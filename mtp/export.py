"""Models in forms that transformers reads without this package.

    hf        the trunk alone, as its own class
    use-mtp   trunk and sequential modules, for `generate(use_mtp=True)`
    speculators   a chain head alone, see `mtp.speculators`

transformers loads extra modules (its `MtpModel`) only for classes that say how their weights are named. Of those,
MiMo-V2-Flash with full attention, dense layers, whole rotary and values unscaled is a Llama layer, so that a trunk of
that form can be written as one, weight by weight.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtp.model import MTPForCausalLM
from mtp.speculators import write_speculator

FORMATS = ("hf", "use-mtp", "speculators")
LLAMA_FORM = ("llama", "mistral", "qwen2")


def export(model: MTPForCausalLM, form: str, folder: Path, verifier: str | None = None) -> None:
    """Write model.safetensors, config.json and, of whole models, generation_config.json into folder. verifier: the trunk's
    name, for a head that is written without it."""
    if form == "speculators":
        write_speculator(model, folder, verifier)
        return
    if form == "hf":
        model.trunk.save_pretrained(folder)
        return
    if form != "use-mtp":
        raise ValueError(f"format {form!r}: known are {', '.join(FORMATS)}")
    from transformers import MiMoV2FlashForCausalLM

    written: Any = MiMoV2FlashForCausalLM(use_mtp_config(model))
    written.to(model.dtype)
    written.load_state_dict(model.trunk.state_dict())
    written.generation_config = model.trunk.generation_config
    written.save_pretrained(folder, state_dict={**written.state_dict(), **module_weights(model)})
    check_same(model, folder)


def use_mtp_config(model: MTPForCausalLM) -> Any:
    """What trunk and modules are as one MiMo-V2-Flash; a ValueError says why they are none."""
    from transformers import MiMoV2FlashConfig

    head: Any = model.head
    trunk = model.trunk.config
    if head is None or head.name != "sequential":
        raise ValueError("use-mtp takes a run with head.name sequential: transformers has no other kind of head")
    if trunk.model_type not in LLAMA_FORM:
        raise ValueError(f"use-mtp takes trunks of the Llama form ({', '.join(LLAMA_FORM)}), not {trunk.model_type}")
    layer = head.config
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "rms_norm_eps", "hidden_act"):
        if getattr(layer, name) != getattr(trunk, name):
            raise ValueError(f"use-mtp needs modules like the trunk's layers: {name} differs")
    size = getattr(trunk, "head_dim", None) or trunk.hidden_size // trunk.num_attention_heads
    if size != head.head_size:
        raise ValueError("use-mtp needs modules like the trunk's layers: head_dim differs")
    rope = dict(trunk.rope_parameters)
    if rope != dict(layer.rope_parameters):
        raise ValueError("use-mtp needs modules like the trunk's layers: their rotary embeddings differ")
    bias = trunk.model_type == "qwen2"
    if getattr(trunk, "mlp_bias", False) or (not bias and getattr(trunk, "attention_bias", False)):
        raise ValueError("use-mtp: this trunk's layers have biases that transformers' class has no place for")
    if getattr(trunk, "sliding_window", None) and getattr(trunk, "use_sliding_window", True):
        raise ValueError("use-mtp: this trunk has a sliding window, its written form would have none")
    layers, modules = trunk.num_hidden_layers, head.block_size - 1
    return MiMoV2FlashConfig(  # type: ignore[call-arg]
        vocab_size=trunk.vocab_size, hidden_size=trunk.hidden_size, intermediate_size=trunk.intermediate_size,
        num_hidden_layers=layers, num_attention_heads=trunk.num_attention_heads,
        num_key_value_heads=trunk.num_key_value_heads, head_dim=size, v_head_dim=size, hidden_act=trunk.hidden_act,
        max_position_embeddings=trunk.max_position_embeddings, rms_norm_eps=trunk.rms_norm_eps,
        tie_word_embeddings=trunk.tie_word_embeddings, attention_bias=bias, attention_value_scale=1.0,
        rope_parameters={"full_attention": {**rope, "partial_rotary_factor": 1.0}},
        layer_types=["full_attention"] * layers, mlp_layer_types=["dense"] * layers,
        num_mtp_layers=modules, mtp_layer_types=["full_attention"] * modules, mtp_mlp_layer_types=["dense"] * modules,
        bos_token_id=trunk.bos_token_id, eos_token_id=trunk.eos_token_id, pad_token_id=trunk.pad_token_id,
    )  # fmt: skip


def module_weights(model: MTPForCausalLM) -> dict[str, Tensor]:
    """The head's weights under the names that transformers looks for: module k after the trunk's layers."""
    after = model.trunk.config.num_hidden_layers
    found: dict[str, Tensor] = {}
    for k, module in enumerate(model.head.layers):  # type: ignore[union-attr, arg-type]
        weights = {name.removeprefix("mtp_block."): value for name, value in module.state_dict().items()}
        if model.trunk.config.model_type == "qwen2":
            for part in ("q_proj", "k_proj", "v_proj"):
                rows = weights[f"self_attn.{part}.weight"]
                weights[f"self_attn.{part}.bias"] = rows.new_zeros(len(rows))
        found |= {f"model.mtp.layers.{after + k}.{name}": value for name, value in weights.items()}
    return found


@torch.no_grad()
def check_same(model: MTPForCausalLM, folder: Path) -> None:
    """What was written, read by transformers, gives the trunk's logits and the modules'."""
    from transformers import AutoModelForCausalLM
    from transformers.cache_utils import MtpCache
    from transformers.modeling_layers import MtpModel

    read: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype).eval()
    modules: Any = MtpModel.from_pretrained(read).eval()
    head: Any = model.head
    size, at = head.block_size, 4
    ids = torch.arange(at + 1 + size)[None] * 5 % len(model.get_output_embeddings().weight)
    mine = ids.to(model.device)
    anchor = torch.zeros(ids.shape, dtype=torch.bool, device=model.device)
    anchor[0, at] = True
    ours = head.law(model.anchored(model.states(mine)[0], mine, anchor), mine[:, at + 1 :])[0].cpu()
    out = read(ids, output_hidden_states=True)
    states, cache, theirs = out.hidden_states[-1][:, : at + 1], MtpCache(config=read.config.get_mtp_config()), []
    for k in range(size - 1):
        tokens, places = ids[:, k + 1 : k + at + 2], torch.arange(k + 1, k + at + 2)[None]
        states = modules.forward_layer(k, states, places, cache, tokens)
        theirs.append(modules._project_to_logits(states)[0, at].float().log_softmax(-1))
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    trunk = (model.trunk(mine).logits.cpu() - out.logits).abs().max()
    if trunk > tolerance or (ours - torch.stack(theirs)).abs().max() > tolerance:
        raise ValueError(f"{folder}: transformers reads another model from what was written")
