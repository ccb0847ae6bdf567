"""A chain head in the speculators layout: what is rebuilt from the folder is the head, and the fields are where they belong."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from mtp.model import MTPForCausalLM
from mtp.speculators import CHAINS, check_layout, read_speculator, speculator_config, write_speculator

SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
OPTIONS = {
    "first-order-chain": {"rank": 8},
    "recurrent-chain": {"rank": 8, "state_size": 6},
    "gru-chain": {"rank": 8},
    "block-chain": {"rank": 8, "width": 16, "num_layers": 2, "num_heads": 2},
}


def attached(head, block_size=4, dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = MTPForCausalLM.from_trunk(LlamaForCausalLM(LlamaConfig(**SIZES)), head, block_size, **options).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name, options", [*OPTIONS.items(), ("block-chain", {"rank": 8, "tied": True})])
def test_the_head_rebuilt_from_the_folder_alone_has_the_same_bits(tmp_path, name, options, dtype):
    model = attached(name, dtype=dtype, **options)
    write_speculator(model, tmp_path)
    head = read_speculator(tmp_path)
    ctx = model.context(torch.randn(9, 32).to(dtype))
    blocks = torch.randint(50, (9, 4))
    with torch.no_grad():
        wanted = model.head.log_prob(ctx, blocks)
        assert torch.equal(head.log_prob(ctx, blocks), wanted)
        next(head.parameters()).add_(0.5)
        assert not torch.equal(head.log_prob(ctx, blocks), wanted)


@pytest.mark.parametrize("name", CHAINS)
def test_the_fields_of_the_layout_are_there(tmp_path, name):
    write_speculator(attached(name, **OPTIONS[name]), tmp_path, "some/trunk")
    config = json.loads((tmp_path / "config.json").read_text())
    check_layout(config)
    told = config["speculators_config"]
    assert told["verifier"] == {"name_or_path": "some/trunk", "architectures": ["LlamaForCausalLM"]}
    assert told["proposal_methods"][0]["speculative_tokens"] == 3  # the first token of a block is the verifier's own
    assert config["speculators_model_type"] == f"leaplm-{name}" and config["rank"] == 8 and config["block_size"] == 4
    assert ("transformer_layer_config" in config) == (name == "block-chain")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert file.get_slice("readout").get_shape() == [50, 8]
    assert not any("embed_tokens" in key or "lm_head" in key for key in names)
    written = (read_speculator.__globals__["__doc__"] or "").replace(".*", ".")
    assert all(any(part in written for part in (key, key.split(".")[0] + ".")) for key in names), "documented tensors"


@pytest.mark.parametrize(
    "missing", ["architectures", "speculators_version", "speculators_config", "verifier", "algorithm"]
)
def test_a_config_without_one_of_them_is_refused_by_name(missing):
    config = speculator_config(attached("first-order-chain", rank=8))
    (config if missing in config else config["speculators_config"]).pop(missing)
    with pytest.raises(ValueError, match=missing):
        check_layout(config)


def test_what_contradicts_itself_or_is_no_chain_is_refused(tmp_path):
    config = speculator_config(attached("first-order-chain", rank=8))
    assert config["speculators_config"]["verifier"]["name_or_path"] is None
    config["speculators_config"]["default_proposal_method"] = "sampled"
    with pytest.raises(ValueError, match="'sampled' is none of"):
        check_layout(config)
    with pytest.raises(ValueError, match=r"head\.name is one of"):
        write_speculator(attached("mixture"), tmp_path)
    config = speculator_config(attached("first-order-chain", rank=8)) | {"speculators_model_type": "dspark"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="holds a dspark"):
        read_speculator(tmp_path)


@pytest.mark.parametrize("name", CHAINS)
def test_the_packages_own_schema_takes_the_config(name):
    """Its general fields; the model's own it lets through."""
    theirs = pytest.importorskip("speculators.config", reason="speculators is not installed beside this transformers")
    config = speculator_config(attached(name, **OPTIONS[name]), "some/trunk")
    read = theirs.SpeculatorsConfig.model_validate(config["speculators_config"])
    assert read.proposal_methods[0].speculative_tokens == 3 and read.verifier.name_or_path == "some/trunk"
