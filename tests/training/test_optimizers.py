"""Every weight has one optimizer; Muon's are the hidden matrices and nothing that holds words."""

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from mtp import MTPForCausalLM
from training.fields import OptimizerConfig
from training.optimizers import hidden_matrices, make_optimizers


def model(tied):
    config = LlamaConfig(
        vocab_size=24, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=tied
    )  # fmt: skip
    return MTPForCausalLM.from_trunk(AutoModelForCausalLM.from_config(config), "first-order-chain", 3, rank=4)


def test_muon_has_the_hidden_matrices_and_adamw_the_rest():
    for tied in (True, False):
        made = model(tied)
        names = {id(p): name for name, p in made.named_parameters()}
        hidden = {names[id(p)].split(".")[-2] for p in hidden_matrices(made)}
        assert {"q_proj", "o_proj", "up_proj", "down_proj"} <= hidden and not {"lm_head", "embed_tokens"} & hidden
        adam, muon = make_optimizers(made, OptimizerConfig(muon=True))
        assert isinstance(adam, torch.optim.AdamW) and isinstance(muon, torch.optim.Muon)
        held = [id(p) for one in (adam, muon) for group in one.param_groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in made.parameters())
        made.trunk.requires_grad_(False)
        assert not {id(p) for p in made.trunk.parameters()} & {id(p) for p in hidden_matrices(made)}
        assert [type(one) for one in make_optimizers(made, OptimizerConfig())] == [torch.optim.AdamW]


def test_a_muon_step_turns_every_direction_alike_and_is_as_long_as_adamws():
    torch.manual_seed(0)
    layer = nn.Linear(48, 32, bias=False)
    before = layer.weight.detach().clone()
    [muon] = make_optimizers(layer, OptimizerConfig(lr=0.01, muon=True, weight_decay=0.0))
    layer.weight.grad = torch.randn(32, 8) @ torch.randn(8, 48) + 0.01 * torch.randn(32, 48)
    muon.step()
    moved = before - layer.weight.detach()
    values = torch.linalg.svdvals(moved)
    assert values[7] > 0.5 * values[0]  # those of the gradient differ by more than that
    assert torch.linalg.svdvals(layer.weight.grad)[7] < 0.5 * torch.linalg.svdvals(layer.weight.grad)[0]
    size = moved.square().mean().sqrt() / 0.01
    assert 0.06 < size < 0.3  # Adam's steps are a fifth of lr in the mean (2502.16982)
