"""Drawn blocks behind their own prefixes in one pass, and the objective that is made of them, row by row."""

import contextlib

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from flowmap.rng import Rng
from mtp import MTPForCausalLM
from mtp.batch import TokenBatch
from mtp.losses.on_policy import KINDS
from mtp.losses.rollout import Anchors, states_after
from mtp.objective import JointCrossEntropy
from tests.mtp.test_objective import make_batch


def test_blocks_behind_a_window_are_read_as_if_each_stood_alone(trunk):
    model = MTPForCausalLM.from_trunk(trunk)
    g = torch.Generator().manual_seed(0)
    window, place = torch.randint(20, (2, 9), generator=g), torch.tensor([[2, 8, 5], [0, 7, 3]])
    blocks = torch.randint(20, (6, 4, 3), generator=g)
    _, cache = model.states(window, use_cache=True)
    got = states_after(model, cache, 9, place, blocks)
    for row, (window_, places) in enumerate(zip(window, place, strict=True)):
        for a, at in enumerate(places):
            for j, block in enumerate(blocks[row * 3 + a]):
                alone, _ = model.states(torch.cat([window_[: at + 1], block])[None])
                assert torch.allclose(got[row * 3 + a, j], alone[0, at + 1 :], atol=1e-4)


def test_anchors_are_drawn_uniformly_and_stand_for_all():
    """Over many draws the weighted picks of every position average to whether it is an anchor."""
    anchors = torch.tensor([[1, 1, 0, 1, 1, 1], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    total, n = torch.zeros(3, 6), 4000
    for batch in range(n):
        picked = Anchors.pick(anchors, 2, Rng(0, torch.arange(3), batch))
        total.scatter_add_(1, picked.place, picked.weight)
    # a pick of two of five counts 5/2 with probability 2/5: its deviation is √(5/2 − 1)
    assert (total / n - anchors.float()).abs().max() < 4 * (1.5 / n) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_objective_does_not_depend_on_how_a_batch_is_cut(trunk, kind):
    model, batch = MTPForCausalLM.from_trunk(trunk, "block-chain", 3, rank=4), make_batch()
    model.trunk.requires_grad_(False)
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    objective = JointCrossEntropy(True, anchor_fraction=2 / 7, on_policy=kind, samples=3).train()
    whole = objective(model, batch, rng=Rng(0, torch.arange(3)), step=0)
    whole.sum.backward()
    expected = [None if p.grad is None else p.grad.clone() for p in model.head.parameters()]
    assert any(g is not None and g.abs().sum() > 0 for g in expected)
    assert whole.metrics[kind][1] == whole.count  # every anchor is stood for
    model.zero_grad()
    hidden = model.states(batch.inputs)[0].detach()  # as a cache of states has it
    parts = []
    for row in range(3):
        one = TokenBatch(
            *(x[row : row + 1] for x in (batch.tokens, batch.document, batch.scored)),
            batch.length,
            hidden[row : row + 1],
        )
        parts.append(objective(model, one, rng=Rng(0, torch.tensor([row])), step=0))
        parts[-1].sum.backward()
    assert sum(part.sum.item() for part in parts) == pytest.approx(whole.sum.item(), rel=1e-4, abs=1e-5)
    for parameter, grad in zip(model.head.parameters(), expected, strict=True):
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or torch.allclose(parameter.grad, grad, atol=1e-4)
    plain = JointCrossEntropy(True).eval()(model, batch, rng=Rng(0, torch.arange(3)), step=0)
    judged = objective.eval()(model, batch, rng=Rng(0, torch.arange(3)), step=0)
    assert judged.metrics["head_nll"][0] == plain.metrics["head_nll"][0]  # what is reported is the plain loss


def test_what_goes_with_nothing_is_refused():
    for options in ({"distill": "hybrid"}, {"weighting": "decay"}):
        with pytest.raises(ValueError, match="no distillation and no position weights"):
            JointCrossEntropy(True, on_policy="rloo-kl", **options)
    with pytest.raises(ValueError, match="has to be frozen"):
        JointCrossEntropy(on_policy="rloo-kl")


@pytest.mark.parametrize("window, refused", [(8, True), (9, False)])
def test_a_trunk_that_looks_back_less_far_than_window_and_block_is_refused(window, refused):
    """7 positions and the 2 tokens of a block that are read behind the last of them."""
    config = MistralConfig(
        vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, sliding_window=window, eos_token_id=0,
    )  # fmt: skip
    model = MTPForCausalLM.from_trunk(MistralForCausalLM(config), "block-chain", 3, rank=4)
    model.trunk.requires_grad_(False)
    objective = JointCrossEntropy(True, on_policy="rloo-overlap").train()
    with pytest.raises(ValueError, match=f"looks back {window}") if refused else contextlib.nullcontext():
        objective(model, make_batch(), rng=Rng(0, torch.arange(3)), step=0)
