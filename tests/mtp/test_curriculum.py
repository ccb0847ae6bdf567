"""The base of a chain first: at the start the gradient is the independent head's, after the share the plain chain's."""

import pytest
import torch

from flowmap.rng import Rng
from mtp import MTPForCausalLM
from mtp.heads import NAMES
from mtp.losses.curriculum import chain_weight
from mtp.objective import JointCrossEntropy
from tests.mtp.test_heads import CHAINS, N, all_blocks, context, head
from tests.mtp.test_objective import make_batch

RNG = Rng(0, torch.arange(3))


def gradients(objective, model, step):
    model.zero_grad()
    loss = objective(model, make_batch(), rng=RNG, step=step)
    loss.sum.backward()
    return loss, {name: p.grad.clone() for name, p in model.head.named_parameters() if p.grad is not None}


def model_with(trunk, name):
    torch.manual_seed(3)
    model = MTPForCausalLM.from_trunk(trunk, name, 3, **({"rank": 4} if name in CHAINS else {}))
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("name", CHAINS)
def test_the_gradient_goes_from_the_independent_heads_to_the_chains(trunk, name):
    chain, independent = model_with(trunk, name), model_with(trunk, "independent")
    independent.head.projection.load_state_dict(chain.head.projection.state_dict())
    taught = JointCrossEntropy(frozen_trunk=True, curriculum=10.0).train()
    plain = JointCrossEntropy(frozen_trunk=True).train()
    loss, got = gradients(taught, chain, 0)
    expected_loss, expected = gradients(plain, independent, 0)
    assert torch.equal(loss.sum, expected_loss.sum)
    for key, value in got.items():
        assert torch.equal(value, expected.get(key, torch.zeros(())).expand_as(value)), key
    assert {key for key in got if key.startswith("projection")} == set(expected)
    assert set(got) == set(gradients(plain, chain, 0)[1])  # none is left out, which would stop several processes
    for step in (10, 11, 1000):
        loss, got = gradients(taught, chain, step)
        expected_loss, expected = gradients(plain, chain, step)
        assert torch.equal(loss.sum, expected_loss.sum) and "base_nll" not in loss.metrics
        assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_between_them_it_is_their_mixture(trunk):
    chain = model_with(trunk, "recurrent-chain")
    taught = JointCrossEntropy(frozen_trunk=True, curriculum=10.0).train()
    (low, first), (high, last), (middle, got) = (gradients(taught, chain, step) for step in (0, 10, 3))
    assert middle.sum.item() == pytest.approx(0.7 * low.sum.item() + 0.3 * high.sum.item(), rel=1e-5)
    for key in last:
        assert torch.allclose(got[key], 0.7 * first[key] + 0.3 * last[key], atol=1e-5)
    assert torch.equal(middle.metrics["head_nll"][0], high.metrics["head_nll"][0])  # what is reported is the chain's
    assert middle.metrics["base_nll"][0] / 2 == pytest.approx(low.sum.item(), rel=1e-5)


@pytest.mark.parametrize("name", CHAINS)
def test_the_base_is_the_softmax_of_its_own_logits(name):
    ctx, chain, targets = context(bias=True), head(name), all_blocks(3)[:N]
    mask = torch.ones_like(targets, dtype=torch.bool)
    logits = chain.projection(ctx.hidden, 2) @ ctx.unembedding.T + ctx.bias
    expected = -logits.log_softmax(-1).gather(-1, targets[:, 1:, None])[..., 0]
    assert torch.allclose(chain.base_nll(ctx, targets, mask).sum[1:], expected.sum(0).float(), atol=1e-5)


def test_the_weight_is_a_function_of_the_step_alone():
    assert [chain_weight(step, 4.0) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert chain_weight(0, 0.0) == 1


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(CHAINS)))
def test_a_head_without_a_base_says_so_in_one_line(name):
    targets = all_blocks(3)[:N]
    with pytest.raises(NotImplementedError, match=r"^[^\n]*head.curriculum is for chains$"):
        head(name).base_nll(context(), targets, torch.ones_like(targets, dtype=torch.bool))


@pytest.mark.parametrize("more", [{"distill": "hybrid"}, {"own_samples": 0.5}])
def test_a_curriculum_beside_distillation_is_refused(more):
    with pytest.raises(ValueError, match="leave out distillation and own samples"):
        JointCrossEntropy(curriculum=10.0, **more)
