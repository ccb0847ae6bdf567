import pytest
import torch

from flowmap.rng import Rng
from mtp import MTPForCausalLM
from mtp.batch import TokenBatch
from mtp.objective import JointCrossEntropy


def make_batch(length=7, reach=3):
    tokens = torch.randint(20, (3, length + reach), generator=torch.Generator().manual_seed(0))
    document = torch.tensor([[0] * 10, [0] * 4 + [1] * 6, [0] * 3 + [1] * 2 + [-1] * 5])
    scored = document >= 0
    scored[0, 2] = False
    return TokenBatch(tokens, document, scored, length)


def double_loop(model, batch):
    """Position by position, from full logits: sums and counts of nll per block position."""
    size = model.head.block_size
    hidden, _ = model.states(batch.inputs)
    sums, counts = [0.0] * size, [0] * size
    for b in range(batch.size):
        for i in range(batch.length):
            block = []
            for k in range(1, size + 1):
                j = i + k
                if batch.document[b, j] != batch.document[b, i] or batch.document[b, j] < 0 or not batch.scored[b, j]:
                    break
                block.append(int(batch.tokens[b, j]))
            if block:
                log_prob = model.head.log_prob(model.context(hidden[b, i : i + 1]), torch.tensor([block]))
                for k in range(len(block)):
                    sums[k] -= log_prob[0, k].item()
                    counts[k] += 1
    return sums, counts


def test_the_loss_is_the_double_loop_over_positions_and_documents(trunk):
    torch.manual_seed(3)
    model = MTPForCausalLM.from_trunk(trunk, "block-chain", 3)
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    batch = make_batch()
    sums, counts = double_loop(model, batch)
    loss = JointCrossEntropy(head_weight=0.5)(model, batch, rng=Rng(0, torch.arange(3)), step=0)
    for k in range(3):
        got_sum, got_count = loss.metrics[f"nll_{k + 1}"]
        assert got_sum.item() == pytest.approx(sums[k], rel=1e-4) and got_count.item() == counts[k]
    assert loss.sum.item() == pytest.approx(sums[0] + 0.5 * (sums[1] + sums[2]) / 2, rel=1e-4)
    assert loss.count.item() == counts[0]


def test_what_lies_outside_the_document_cannot_change_the_loss(trunk):
    model = MTPForCausalLM.from_trunk(trunk, "recurrent-chain", 3, rank=4)
    batch = make_batch()
    changed = batch.tokens.clone()
    changed[2, 5:] = (changed[2, 5:] + 1) % 20  # padding
    objective, rng = JointCrossEntropy(), Rng(0, torch.arange(3))
    one = objective(model, batch, rng=rng, step=0)
    other = objective(model, TokenBatch(changed, batch.document, batch.scored, 7), rng=rng, step=0)
    assert torch.equal(one.sum, other.sum)


def test_a_frozen_trunk_gets_no_gradient_and_the_head_the_same_one(trunk):
    model = MTPForCausalLM.from_trunk(trunk, "block-chain", 3)
    batch, rng = make_batch(), Rng(0, torch.arange(3))
    JointCrossEntropy()(model, batch, rng=rng, step=0).sum.backward()
    expected = {n: p.grad.clone() for n, p in model.head.named_parameters()}
    model.zero_grad()
    model.trunk.requires_grad_(False)
    cached = TokenBatch(batch.tokens, batch.document, batch.scored, 7, model.states(batch.inputs)[0].detach())
    for given in (batch, cached):
        model.zero_grad()
        JointCrossEntropy(frozen_trunk=True)(model, given, rng=rng, step=0).sum.backward()
        assert all(p.grad is None for p in model.trunk.parameters())
        for name, parameter in model.head.named_parameters():
            assert torch.allclose(parameter.grad, expected[name], atol=1e-6)


def test_a_head_trained_at_block_starts_alone_is_scored_there_alone(trunk):
    model = MTPForCausalLM.from_trunk(trunk, "block-chain", 3)
    batch, objective, rng = make_batch(), JointCrossEntropy(), Rng(0, torch.arange(3))
    starts = torch.zeros(3, 7, dtype=torch.bool)
    starts[0, 3] = starts[1, 5] = True
    part = TokenBatch(batch.tokens, batch.document, batch.scored, 7, None, starts)
    loss = objective(model, part, rng=rng, step=0)
    assert loss.metrics["nll_2"][1] == 2 and loss.count == objective(model, batch, rng=rng, step=0).count
    hidden, _ = model.states(batch.inputs)
    rows = model.context(torch.stack([hidden[0, 3], hidden[1, 5]]))
    targets = torch.stack([batch.tokens[0, 4:7], batch.tokens[1, 6:9]])
    assert torch.allclose(loss.metrics["nll_2"][0], -model.head.log_prob(rows, targets)[:, 1].sum(), atol=1e-4)


def test_scoring_a_fraction_of_the_positions_is_unbiased(trunk):
    model = MTPForCausalLM.from_trunk(trunk, "independent", 3)
    batch = make_batch()
    whole = JointCrossEntropy(frozen_trunk=True)(model, batch, rng=Rng(0, torch.arange(3)), step=0)
    part = JointCrossEntropy(frozen_trunk=True, anchor_fraction=0.25)
    draws = torch.stack([part(model, batch, rng=Rng(s, torch.arange(3)), step=0).sum.detach() for s in range(400)])
    assert abs(draws.mean() - whole.sum) < 4 * draws.std() / 20


@pytest.mark.parametrize("options", [{"distill": "hybrid"}, {"distill": "cross-entropy"}, {"weighting": "d-pace"}])
def test_other_losses_do_not_depend_on_how_a_batch_is_cut(trunk, options):
    """Rows one by one give what the whole gives, so that micro-batches and ranks change nothing."""
    model, batch = MTPForCausalLM.from_trunk(trunk, "block-chain", 3, rank=4), make_batch()
    objective = JointCrossEntropy(frozen_trunk=True, **options).train()
    whole = objective(model, batch, rng=Rng(0, torch.arange(3)), step=0)
    parts = []
    for row in range(3):
        one = TokenBatch(*(x[row : row + 1] for x in (batch.tokens, batch.document, batch.scored)), batch.length)
        parts.append(objective(model, one, rng=Rng(0, torch.tensor([row])), step=0))
    assert sum(part.sum.item() for part in parts) == pytest.approx(whole.sum.item(), rel=1e-4)
    assert sum(part.count.item() for part in parts) == whole.count.item()
    whole.sum.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.head.parameters())


def test_unknown_losses_are_named():
    with pytest.raises(ValueError, match="known are uniform, decay, d-pace"):
        JointCrossEntropy(weighting="linear")
    with pytest.raises(ValueError, match="known are cross-entropy"):
        JointCrossEntropy(distill="kl")
