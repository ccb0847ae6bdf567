"""The loss at prefixes that the head draws itself: the trunk's states there, its zero, its expectation."""

import itertools

import pytest
import torch

from flowmap.rng import Rng
from mtp import MTPForCausalLM
from mtp.batch import TokenBatch
from mtp.heads.base import Draft, JointHead
from mtp.losses.distillation import compare
from mtp.losses.own_samples import choose, own_states
from mtp.losses.window import Window
from mtp.objective import JointCrossEntropy
from tests.mtp.test_objective import make_batch

RNG = Rng(0, torch.arange(3))
END = 0
"""The trunks' end token."""


def naive_state(model, window, place, tokens):
    """The trunk's state after the window up to `place` and these tokens, read from the start."""
    ids = torch.cat([window[: place + 1], tokens])[None]
    return model.states(ids)[0][0, -1]


def joint_model(trunk, name="block-chain", block_size=3, **options):
    torch.manual_seed(3)
    model = MTPForCausalLM.from_trunk(trunk, name, block_size, **options)
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.trunk.requires_grad_(False)
    return model


def test_the_trunk_reads_each_block_as_if_it_were_alone(trunk):
    model, window = joint_model(trunk), torch.randint(20, (3, 7), generator=torch.Generator().manual_seed(0))
    anchors = torch.tensor([[1, 0, 0, 1, 1, 0, 0], [0] * 7, [0, 1, 0, 0, 0, 0, 0]], dtype=torch.bool)
    tokens = torch.randint(20, (4, 3), generator=torch.Generator().manual_seed(1))
    states = own_states(model, model.states(window, use_cache=True)[1], anchors, tokens)
    for n, (row, place) in enumerate(torch.nonzero(anchors).tolist()):
        for k in range(3):
            expected = naive_state(model, window[row], place, tokens[n, : k + 1])
            assert torch.allclose(states[n, k], expected, atol=1e-4), (row, place, k)


class TrunkAsHead(JointHead):
    """A head that is the trunk itself: it finds its anchor by the state it is given, and reads on from there."""

    name = "trunk"

    def __init__(self, model, window, block_size):
        super().__init__(16, 20, block_size)
        self._model, self.window = (model,), window

    def place(self, ctx):
        hidden = self._model[0].states(self.window)[0]
        distance = torch.cdist(ctx.hidden[None], hidden.flatten(0, 1)[None])[0]
        return [divmod(int(index), self.window.shape[1]) for index in distance.argmin(1)]

    def law(self, ctx, x):
        rows = []
        for (row, place), block in zip(self.place(ctx), x, strict=True):
            states = [naive_state(self._model[0], self.window[row], place, block[:k]) for k in range(1, len(block))]
            rows.append(self._model[0].context(torch.stack(states)).first_logits())
        return torch.stack(rows).log_softmax(-1)

    def sample(self, ctx, warp, rng, first=None):
        x, noise = first[:, None], rng.uniform("block", len(first), self.block_size)
        for k in range(1, self.block_size):
            law = self.law(ctx, torch.cat([x, x[:, :1]], 1))[:, -1]
            x = torch.cat([x, warp.draw(law, noise[:, k])[0][:, None]], 1)
        return Draft(x, torch.zeros_like(x), [], warp)


@pytest.mark.parametrize("kind", [None, "total-variation"])
def test_a_head_that_is_the_trunk_has_no_loss(trunk, kind):
    tokens = torch.randint(1, 20, (3, 12), generator=torch.Generator().manual_seed(0))
    model, batch = joint_model(trunk, block_size=4), TokenBatch(tokens, tokens * 0, tokens > 0, 8)
    model.head = TrunkAsHead(model, batch.inputs, 4)
    objective = JointCrossEntropy(frozen_trunk=True, own_samples=1.0, distill=kind)
    hidden, cache = model.states(batch.inputs, use_cache=True)
    targets, mask = batch.blocks(4)
    own = choose(mask[..., 0], 1.0, 4, RNG)
    with torch.no_grad():
        loss, metrics = objective._own(Window(model, hidden, cache, batch.tokens, targets, mask, own, RNG))
    overlap, count = metrics["own_acceptance"]
    assert count > 25 and loss.abs() < 1e-4 * count and overlap.item() == pytest.approx(count.item(), rel=1e-4)


def one_anchor(rows, place=3):
    """The same window in every row, and one anchor in it."""
    tokens = torch.randint(1, 20, (1, 11), generator=torch.Generator().manual_seed(5)).expand(rows, -1)
    starts = torch.zeros(rows, 7, dtype=torch.bool)
    starts[:, place] = True
    one = torch.zeros_like(tokens)
    return TokenBatch(tokens, one, one == 0, 7, starts=starts)


@pytest.mark.parametrize("kind", ["hybrid", "total-variation"])
def test_the_expected_gradient_is_the_sum_over_prefixes_weighted_by_the_heads_law(trunk, kind):
    """Every (x_2, x_3) in turn, each with the gradient of its own distance; x_2 = end leaves position 4 out."""
    model, batch = joint_model(trunk, "recurrent-chain", 4, rank=4), one_anchor(1)
    parameters = list(model.head.parameters())
    window, x_1 = batch.tokens[0, :4], batch.tokens[0, 4:5]
    ctx = model.context(model.states(batch.inputs)[0][0, 3:4])
    pairs = torch.tensor(list(itertools.product(range(20), repeat=2)))
    blocks = torch.cat([x_1.expand(400, 1), pairs, pairs[:, :1]], 1)
    log_q = model.head.law(model.context(ctx.hidden.expand(400, -1)), blocks)
    ids = torch.cat([window.expand(400, -1), blocks[:, :3]], 1)
    log_p = model.context(model.states(ids)[0][:, 4:7]).first_logits().log_softmax(-1).detach()
    distance, _ = compare(log_p, log_q, kind)
    chance = log_q[:, :2].gather(-1, pairs[..., None])[..., 0].sum(1).exp().detach()
    counted = torch.stack([torch.ones(400), pairs[:, 0] != END, (pairs != END).all(1)], 1)
    assert chance.sum().item() == pytest.approx(1, abs=1e-4)
    exact_loss = (chance[:, None] * counted * distance).sum() / 3
    exact = torch.autograd.grad(exact_loss, parameters)
    generator = torch.Generator().manual_seed(9)
    directions = [torch.randn(p.shape, generator=generator) for p in parameters]
    along = lambda gradients: sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))  # noqa: E731
    objective = JointCrossEntropy(frozen_trunk=True, own_samples=1.0, distill=kind).train()
    losses, slopes, rows = [], [], 64
    many = one_anchor(rows)
    for n in range(60):
        loss = objective(model, many, rng=Rng(0, torch.arange(rows), n), step=n)
        losses.append(loss.sum.detach() / rows)
        slopes.append(along(torch.autograd.grad(loss.sum / rows, parameters, allow_unused=False)))
    for drawn, expected in ((torch.stack(losses), exact_loss), (torch.stack(slopes), along(exact))):
        assert abs(drawn.mean() - expected) < 4 * drawn.std() / 60**0.5
        assert drawn.std() / 60**0.5 < 0.1 * abs(expected) + 1e-3  # fine enough to tell


def test_a_share_of_the_anchors_is_taught_so_and_the_rest_by_the_text(trunk):
    model, batch = joint_model(trunk), make_batch()
    objective = JointCrossEntropy(frozen_trunk=True, own_samples=0.5).train()
    loss = objective(model, batch, rng=RNG, step=0)
    targets, mask = batch.blocks(3)
    anchors = mask[..., 0]
    own = choose(anchors, 0.5, 3, RNG)
    assert 0 < own.sum() < anchors.sum() and not own[:, 5:].any()  # places 5 and 6 have no room for a block
    rest = TokenBatch(*(getattr(batch, f) for f in ("tokens", "document", "scored")), 7, starts=anchors & ~own)
    plain = JointCrossEntropy(frozen_trunk=True).train()(model, rest, rng=RNG, step=0)
    assert torch.equal(loss.metrics["head_nll"][0], plain.metrics["head_nll"][0])
    hidden, cache = model.states(batch.inputs, use_cache=True)
    part, _ = objective._own(Window(model, hidden, cache, batch.tokens, targets, mask, own, RNG))
    assert loss.sum.item() == pytest.approx(plain.sum.item() + part.item() / 2, rel=1e-5)
    objective.eval()
    assert "own_acceptance" not in objective(model, batch, rng=RNG, step=0).metrics


def test_cached_states_teach_the_same(trunk):
    model, batch = joint_model(trunk), make_batch()
    cached = TokenBatch(batch.tokens, batch.document, batch.scored, 7, model.states(batch.inputs)[0])
    objective = JointCrossEntropy(frozen_trunk=True, own_samples=0.7).train()
    one, other = (objective(model, given, rng=RNG, step=0).sum for given in (batch, cached))
    assert torch.allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("name", ["block-chain", "independent", "mixture", "medusa", "lattice-chain"])
def test_it_does_not_depend_on_how_a_batch_is_cut(trunk, name):
    model, batch = joint_model(trunk, name), make_batch()
    objective = JointCrossEntropy(frozen_trunk=True, own_samples=0.5).train()
    whole = objective(model, batch, rng=RNG, step=0)
    parts = []
    for row in range(3):
        one = TokenBatch(*(x[row : row + 1] for x in (batch.tokens, batch.document, batch.scored)), batch.length)
        parts.append(objective(model, one, rng=Rng(0, torch.tensor([row])), step=0))
    assert sum(part.sum.item() for part in parts) == pytest.approx(whole.sum.item(), rel=1e-4)
    assert all(set(part.metrics) == set(whole.metrics) for part in parts)


def test_a_trunk_that_learns_gets_no_gradient_from_what_it_says_of_drawn_prefixes(trunk):
    model, batch = joint_model(trunk, "block-chain"), make_batch()
    model.trunk.requires_grad_(True)
    hidden, cache = model.states(batch.inputs, use_cache=True)
    targets, mask = batch.blocks(3)
    own = choose(mask[..., 0], 1.0, 3, RNG)
    objective = JointCrossEntropy(own_samples=1.0, distill="cross-entropy").train()
    loss, _ = objective._own(Window(model, hidden.detach(), cache, batch.tokens, targets, mask, own, RNG))
    loss.backward()
    table = model.get_output_embeddings().weight
    inner = [p for p in model.trunk.parameters() if p is not table and p is not model.get_input_embeddings().weight]
    assert all(p.grad is None for p in inner)
    assert all(p.grad is not None for p in model.head.parameters())


def test_a_head_without_conditional_laws_says_so(trunk):
    model = joint_model(trunk, "flow-map")
    objective = JointCrossEntropy(frozen_trunk=True, own_samples=1.0).train()
    with pytest.raises(NotImplementedError, match="flow-map gives no conditional laws"):
        objective(model, make_batch(), rng=RNG, step=0)
