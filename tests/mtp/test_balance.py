"""Balance of a mixture against its closed form, and what it does to one that has collapsed."""

import math

import pytest
import torch

from flowmap.rng import Rng
from mtp import MTPForCausalLM
from mtp.batch import TokenBatch
from mtp.heads import NAMES
from mtp.losses.balance import balance
from mtp.objective import JointCrossEntropy
from tests.mtp.test_heads import N, V, all_blocks, context, head
from tests.mtp.test_objective import make_batch

MIXTURES = ["mixture", "mixture-of-chains"]


def test_two_components_by_hand():
    """With mean weights (p, 1 − p): CV² = (2p − 1)², and d CV²/d logit = 4 (2p − 1) π(1 − π)/n for an anchor's own π."""
    first = torch.tensor([0.9, 0.7, 0.2], dtype=torch.float64)
    logits = torch.stack([(first / (1 - first)).log(), torch.zeros(3, dtype=torch.float64)], 1).requires_grad_()
    rows = torch.tensor([0, 0, 2])
    used = balance(logits.log_softmax(-1), rows, 3)
    expected = 2 * (2 * 0.8 - 1) ** 2 + (2 * 0.2 - 1) ** 2
    assert used.loss.item() == pytest.approx(expected)
    entropy = lambda p: -p * math.log(p) - (1 - p) * math.log(1 - p)  # noqa: E731
    assert used.entropy.item() == pytest.approx(2 * entropy(0.8) + entropy(0.2))
    (gradient,) = torch.autograd.grad(used.loss, logits)
    mean = torch.tensor([0.8, 0.8, 0.2], dtype=torch.float64)
    by_hand = 4 * (2 * mean - 1) * first * (1 - first)  # n · 1/n
    assert torch.allclose(gradient, torch.stack([by_hand, -by_hand], 1))


def test_it_is_the_squared_coefficient_of_variation():
    log_prior = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    usage = log_prior.exp().mean(0)
    used = balance(log_prior, torch.zeros(6, dtype=torch.long), 1)
    assert used.loss.item() == pytest.approx(6 * float(usage.var(correction=0) / usage.mean() ** 2), rel=1e-4)
    even = torch.full((6, 4), 0.25).log()
    assert balance(even, torch.zeros(6, dtype=torch.long), 1).loss.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", MIXTURES)
def test_the_prior_is_what_the_mixture_sums_by(name):
    ctx, made, blocks = context(), head(name, 2), all_blocks(2)[:N]
    prior = made.log_prior(ctx, blocks[:, 0])
    assert torch.allclose(prior.exp().sum(-1), torch.ones(N))
    shifted = made.weigh.bias.data
    shifted[0] += 100.0  # the first component alone
    assert torch.allclose(made.log_prior(ctx, blocks[:, 0])[:, 0], torch.zeros(N), atol=1e-6)


@pytest.mark.parametrize("name", MIXTURES)
def test_its_gradient_pushes_a_collapsed_mixture_apart(trunk, name):
    torch.manual_seed(0)
    model = MTPForCausalLM.from_trunk(trunk, name, 3, components=2)
    with torch.no_grad():
        model.head.weigh.weight.zero_()
        model.head.weigh.bias.copy_(torch.tensor([3.0, 0.0]))
    objective = JointCrossEntropy(frozen_trunk=True, head_weight=1.0, balance=1.0).train()
    optimizer, entropies = torch.optim.SGD([model.head.weigh.bias], lr=0.05), []
    for step in range(40):
        loss = objective(model, make_batch(), rng=Rng(0, torch.arange(3)), step=step)
        total, count = loss.metrics["usage_entropy"]
        entropies.append(float(total / count))
        model.zero_grad()
        loss.sum.backward()
        optimizer.step()
    assert entropies[0] < 0.2 and entropies[-1] > 0.68 and entropies == sorted(entropies)


def test_it_is_added_once_an_anchor_and_does_not_depend_on_how_a_batch_is_cut(trunk):
    torch.manual_seed(0)
    model = MTPForCausalLM.from_trunk(trunk, "mixture", 3, components=3)
    torch.nn.init.normal_(model.head.weigh.weight, std=0.5)
    batch, rng = make_batch(), Rng(0, torch.arange(3))
    with_it = JointCrossEntropy(frozen_trunk=True, head_weight=0.5, balance=0.1).train()
    whole = with_it(model, batch, rng=rng, step=0)
    plain = JointCrossEntropy(frozen_trunk=True, head_weight=0.5).train()(model, batch, rng=rng, step=0)
    hidden, anchors = model.states(batch.inputs)[0].detach(), batch.blocks(3)[1][..., 0]
    by_hand = 0.0
    for row in range(3):
        prior = model.head.log_prior(model.context(hidden[row, anchors[row]]), batch.tokens[row, 1:8][anchors[row]])
        usage = prior.detach().exp().mean(0)
        by_hand += float(anchors[row].sum() * (3 * usage.square().sum() - 1))
    assert (whole.sum - plain.sum).item() == pytest.approx(0.5 * 0.1 * by_hand, rel=1e-3)
    parts = []
    for row in range(3):
        one = TokenBatch(*(x[row : row + 1] for x in (batch.tokens, batch.document, batch.scored)), batch.length)
        parts.append(with_it(model, one, rng=Rng(0, torch.tensor([row])), step=0))
    assert sum(part.sum.item() for part in parts) == pytest.approx(whole.sum.item(), rel=1e-5)
    assert sum(p.metrics["usage_entropy"][0] for p in parts).item() == pytest.approx(
        whole.metrics["usage_entropy"][0].item(), rel=1e-5
    )


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(MIXTURES)))
def test_a_head_without_components_says_so_in_one_line(name):
    with pytest.raises(NotImplementedError, match=r"^[^\n]*head.balance is for mixtures$"):
        head(name).log_prior(context(), torch.zeros(N, dtype=torch.long) % V)


def test_what_is_reported_of_held_out_text_is_the_likelihood_alone(trunk):
    model = MTPForCausalLM.from_trunk(trunk, "mixture", 3, components=3)
    with_it, plain = (JointCrossEntropy(frozen_trunk=True, balance=b).eval() for b in (0.5, None))
    one, other = (o(model, make_batch(), rng=Rng(0, torch.arange(3)), step=0) for o in (with_it, plain))
    assert torch.equal(one.sum, other.sum) and "usage_entropy" in one.metrics
