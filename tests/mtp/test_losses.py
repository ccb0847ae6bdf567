"""Losses beyond cross-entropy against sums by hand."""

import pytest
import torch

from flowmap.rng import Rng
from mtp.losses import distillation
from mtp.losses.distillation import KINDS, compare, divergence
from mtp.losses.weights import WEIGHTINGS, d_pace
from mtp.losses.window import Window
from tests.mtp.test_heads import EXACT, V, context, head

K = 3


def laws(seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, 7, V, generator=g, dtype=torch.float64).log_softmax(-1)


def test_distances_are_their_definitions():
    log_p, log_q = laws()
    p, q = log_p.exp(), log_q.exp()
    kl = (p * (p / q).log()).sum(-1)
    variation = (p - q).clamp_min(0).sum(-1)
    share = (-3 * (1 - variation)).exp()
    expected = {
        "cross-entropy": kl + torch.special.entr(p).sum(-1),
        "total-variation": variation,
        "hybrid": share * kl + (1 - share) * variation,
    }
    for kind in KINDS:
        loss, overlap = compare(log_p, log_q, kind)
        assert torch.allclose(loss, expected[kind]) and torch.allclose(overlap, 1 - variation)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_that_is_the_trunk_feels_nothing(kind):
    log_p, _ = laws()
    logits = log_p.clone().requires_grad_()
    loss, overlap = compare(log_p, logits.log_softmax(-1), kind)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.abs().max() < 1e-12 and torch.allclose(overlap, torch.ones(7, dtype=torch.float64))


@pytest.mark.parametrize("name", EXACT)
def test_cross_entropy_to_the_trunks_law_is_the_plain_loss_over_its_tokens(name, monkeypatch):
    """Σ_v p(v) of the loss with v as target, gradients too, and whatever the chunks are."""
    ctx, made = context(), head(name, K)
    targets = torch.tensor([[0, 1, 2], [3, 4, 0], [1, 1, 1]])
    teacher = torch.randn(
        3, K - 1, ctx.hidden.shape[1], generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    weights = torch.tensor([[1.0, 0.5], [1.0, 0.0], [2.0, 1.0]])
    monkeypatch.setattr(distillation, "CHUNK_LOGITS", V * (K - 1))  # one anchor at a time
    loss, overlap = divergence(made, ctx, targets, teacher, weights, "cross-entropy")
    p = (teacher @ ctx.unembedding.T).softmax(-1)
    naive = torch.zeros(())
    for k in range(K - 1):
        for v in range(V):
            swapped = targets.clone()
            swapped[:, k + 1] = v
            naive = naive - (weights[:, k] * p[:, k, v] * made.log_prob(ctx, swapped)[:, k + 1]).sum()
    assert loss.item() == pytest.approx(naive.item(), rel=1e-5) and overlap.shape == (3, K - 1)
    parameters = list(made.parameters())
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    expected = torch.autograd.grad(naive, parameters, allow_unused=True)
    for one, other in zip(grads, expected, strict=True):
        assert (one is None) == (other is None) or (one if other is None else other).abs().max() < 1e-6
        assert one is None or other is None or torch.allclose(one, other, atol=1e-5)


def test_d_pace_is_the_suffix_sum_of_prefix_products():
    log_q = torch.log(torch.tensor([[1.0, 0.5, 0.2, 0.9], [1.0, 0.1, 0.3, 0.4]]))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]], dtype=torch.bool)
    expected = torch.zeros(2, 4)
    for n, (row, count) in enumerate(((log_q[0].exp(), 4), (log_q[1].exp(), 3))):
        for k in range(1, count):
            for m in range(k, count):
                product = 1.0
                for j in range(1, m + 1):
                    product *= 0.5 * float(row[j]) + 0.5
                expected[n, k] += product
    assert torch.allclose(d_pace(log_q, mask)[:, 1:] * mask[:, 1:], expected[:, 1:])


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_rows_weights_are_its_own(name):
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    log_q = -torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    whole = WEIGHTINGS[name](log_q, mask)
    assert torch.equal(whole[1:2], WEIGHTINGS[name](log_q[1:2], mask[1:2]))
    assert name != "decay" or whole[0, 1:].mean().item() == pytest.approx(1)


def test_objectives_teach_the_head_at_the_trunks_own_states():
    """The state after x_{i+1..i+k−1} is the trunk's at position i+k−1 of the window."""
    hidden = torch.arange(2 * 5).view(2, 5, 1).float()
    anchors = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 0, 0]], dtype=torch.bool)
    blocks = torch.zeros(2, 5, 3, dtype=torch.long)
    states, known = Window(None, hidden, None, blocks[..., 0], blocks, blocks > 0, anchors, Rng(0)).next_states()
    assert states[..., 0][known].tolist() == [1, 2, 4, 8, 9] and known.tolist() == [
        [True, True],
        [True, False],
        [True, True],
    ]
