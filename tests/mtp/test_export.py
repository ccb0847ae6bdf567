"""What transformers reads from an exported folder is the model that was exported."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config
from transformers.generation import candidate_generator

from mtp.export import export
from mtp.model import MTPForCausalLM

SIZES = {
    "vocab_size": 50, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip


def attached(trunk, head="sequential", block_size=4, **options):
    model = MTPForCausalLM.from_trunk(trunk, head, block_size, **options).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("trunk", ["llama", "qwen2"])
def test_transformers_drafts_with_the_modules_and_writes_what_the_trunk_writes(tmp_path, trunk, monkeypatch):
    torch.manual_seed(0)
    made = LlamaForCausalLM(LlamaConfig(**SIZES)) if trunk == "llama" else Qwen2ForCausalLM(Qwen2Config(**SIZES))
    model = attached(made)
    export(model, "use-mtp", tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    drafts = []
    get = candidate_generator.MTPCandidateGenerator.get_candidates

    def watched(self, input_ids, *args, **kwargs):
        candidates, logits = get(self, input_ids, *args, **kwargs)
        drafts.append((input_ids.shape[1], candidates))
        return candidates, logits

    monkeypatch.setattr(candidate_generator.MTPCandidateGenerator, "get_candidates", watched)
    ids = torch.randint(50, (1, 9))
    text = read.generate(ids, max_new_tokens=20, do_sample=False, use_mtp=True)
    assert torch.equal(text, made.generate(ids, max_new_tokens=20, do_sample=False))
    ours = [made for made in drafts if made[1].shape[1] > made[0]]
    assert ours
    for length, candidates in ours:  # greedy drafts are our head's own, each block from the text before it
        hidden, _ = model.states(candidates[:, : length - 1])
        anchor = torch.zeros(1, length - 1, dtype=torch.bool)
        anchor[0, -1] = True
        block = candidates[:, length - 1 : length + 3]
        law = model.head.law(model.anchored(hidden, candidates, anchor), block)
        assert torch.equal(law.argmax(-1)[:, : block.shape[1] - 1], block[:, 1:])


def test_the_trunk_alone_is_its_own_class(tmp_path):
    model = attached(LlamaForCausalLM(LlamaConfig(**SIZES)), "first-order-chain", rank=8)
    export(model, "hf", tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    ids = torch.randint(50, (1, 5))
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model.trunk(ids).logits)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: attached(LlamaForCausalLM(LlamaConfig(**SIZES)), "independent"), "sequential"),
        (lambda: attached(LlamaForCausalLM(LlamaConfig(**SIZES)), num_heads=2), "num_attention_heads"),
        (lambda: attached(LlamaForCausalLM(LlamaConfig(**SIZES)), rope_theta=500.0), "rotary"),
        (lambda: attached(LlamaForCausalLM(LlamaConfig(**SIZES, mlp_bias=True))), "biases"),
        (lambda: attached(LlamaForCausalLM(LlamaConfig(**SIZES, head_dim=32))), "head_dim differs"),
        (lambda: attached(LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="gelu"))), "hidden_act differs"),
        (lambda: attached(AutoModelForCausalLM.from_config(Qwen3Config(**SIZES, head_dim=16))), "qwen3"),
    ],
)
def test_what_transformers_has_no_form_for_is_refused(tmp_path, make, said):
    with pytest.raises(ValueError, match=said):
        export(make(), "use-mtp", tmp_path)
