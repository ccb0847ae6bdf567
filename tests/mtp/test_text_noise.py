"""The noise of a text by its trunk, and what a head learns from it."""

import itertools

import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM, LlamaConfig

from flowmap.rng import Rng
from flowmap.warp import Warp, inverse_cdf
from mtp import MTPForCausalLM
from mtp.batch import TokenBatch
from mtp.losses.text_noise import text_noise
from mtp.objective import JointCrossEntropy

V, K = 4, 4


def markov(vocab=V, width=16, std=0.4):
    """A trunk without a memory: its law of the next token is a table over the last, (V, V)."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=width, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    trunk = AutoModelForCausalLM.from_config(config).eval()
    for parameter in trunk.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=std)
    trunk.model.layers[0].self_attn.o_proj.weight.data.zero_()
    with torch.no_grad():
        return trunk, trunk(torch.arange(vocab)[:, None]).logits[:, 0].double().softmax(-1)


def walks(table, rows, length, seed=0):
    """Text of the trunk `markov`."""
    uniform = Rng(seed, torch.arange(rows)).uniform("walk", rows, length).double()
    tokens = [(uniform[:, 0] * len(table)).long()]
    for k in range(1, length):
        tokens.append(inverse_cdf(table[tokens[-1]], uniform[:, k]))
    return torch.stack(tokens, 1)


def windows(model, text, reach=K):
    length = text.shape[1] - reach
    same = torch.zeros_like(text)
    return TokenBatch(text, same, torch.ones_like(text, dtype=torch.bool), length)


@torch.no_grad()
def read_noise(trunk, text, count=2):
    model = MTPForCausalLM.from_trunk(trunk, "noise", K)
    batch = windows(model, text)
    hidden, _ = model.states(batch.inputs)
    anchors = torch.zeros(hidden.shape[:2], dtype=torch.bool)
    anchors[:, ::3] = True
    ctx = model.anchored(hidden, text, anchors)
    share = Rng(3, torch.arange(len(ctx.hidden))).uniform("share", len(ctx.hidden), count).double()
    return (*text_noise(ctx, share), anchors, share)


def test_noise_is_uniform_and_independent_for_text_of_the_trunk_and_for_no_other():
    trunk, table = markov()
    u, known, *_ = read_noise(trunk, walks(table, 3000, 10))
    u = u[known.all(1)]
    assert len(u) == 6000
    for k in (0, 1):
        assert stats.kstest(u[:, k], "uniform").pvalue > 1e-3
    cells = (u * 6).long()
    assert stats.chi2_contingency(torch.bincount(cells[:, 0] * 6 + cells[:, 1], minlength=36).view(6, 6)).pvalue > 1e-3
    other = torch.randint(V, (3000, 10), generator=torch.Generator().manual_seed(1))
    u, known, *_ = read_noise(trunk, other)
    assert stats.kstest(u[known.all(1)][:, 0], "uniform").pvalue < 1e-10


def test_noise_lies_in_the_slice_that_the_trunk_gives_the_token(trunk):
    """By the trunk's whole pass over each beginning of the text, one at a time."""
    text = torch.randint(20, (3, 12), generator=torch.Generator().manual_seed(0))
    u, known, anchors, share = read_noise(trunk, text)
    for n, (row, place) in enumerate(torch.nonzero(anchors).tolist()):
        for k in range(2):
            at = place + 1 + k  # of x_{k+1}
            assert bool(known[n, k]) == (at < anchors.shape[1])
            if known[n, k]:
                with torch.no_grad():
                    p = trunk(text[row : row + 1, : at + 1]).logits[0, -1].double().softmax(-1)
                token = text[row, at + 1]
                assert u[n, k].item() == pytest.approx(float(p[:token].sum() + p[token] * share[n, k]), abs=1e-5), (
                    row,
                    place,
                    k,
                )
    assert not known.all()


def test_the_training_loss_is_the_naive_sum_over_what_is_known():
    trunk, table = markov()
    model = MTPForCausalLM.from_trunk(trunk, "noise", K, rank=6).double()
    made = model.head
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    text = walks(table, 2, 12)
    batch = windows(model, text)
    hidden, _ = model.states(batch.inputs)
    targets, mask = batch.blocks(K)
    anchors = mask[..., 0]
    mask = mask[anchors]
    mask[3, 2:] = False
    targets, rng = targets[anchors], Rng(0, torch.arange(len(mask)))
    weights = torch.tensor([9.0, 1.0, 0.5, 2.0])
    got = made.train().nll(model.anchored(hidden, text, anchors), targets, mask, weights, rng)
    u, known = text_noise(model.anchored(hidden, text, anchors), rng.uniform("noise", len(mask), K - 2))
    logits = made.laws(model.context(hidden[anchors]), targets[:, 0], u)
    naive, count = torch.zeros((), dtype=torch.float64), torch.zeros(K)
    for n, k in itertools.product(range(len(mask)), range(1, K)):
        if mask[n, k] and known[n, : k - 1].all():
            naive = naive - weights[k] * logits[n, k - 1].log_softmax(-1)[targets[n, k]]
            count[k] += 1
    assert torch.equal(got.count, count) and count[3] < count[2] < count[1]
    assert got.loss.item() == pytest.approx(naive.item(), rel=1e-5)
    parameters = list(made.parameters())
    grads = (torch.autograd.grad(loss, parameters, retain_graph=True) for loss in (got.loss, naive))
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, atol=1e-4, rtol=1e-4)


def test_cached_states_and_states_made_anew_give_one_loss():
    trunk, table = markov()
    model = MTPForCausalLM.from_trunk(trunk, "noise", K).train()
    batch = windows(model, walks(table, 3, 12))
    with torch.no_grad():
        hidden, _ = model.states(batch.inputs)
    objective = JointCrossEntropy(frozen_trunk=True).train()
    kept = TokenBatch(batch.tokens, batch.document, batch.scored, batch.length, hidden)
    one, other = (objective(model, b, rng=Rng(0, torch.arange(3)), step=0) for b in (batch, kept))
    assert one.sum.item() == pytest.approx(other.sum.item(), rel=1e-6) and one.sum > 0


def trained(trunk, text, steps, **options):
    torch.manual_seed(1)
    model = MTPForCausalLM.from_trunk(trunk, "noise", 3, rank=16, width=32, **options).train()
    objective = JointCrossEntropy(frozen_trunk=True).train()
    optimizer = torch.optim.AdamW(model.head.parameters(), lr=5e-3, weight_decay=0.0)
    for step in range(steps):
        rows = torch.arange(32) + 32 * step
        batch = windows(model, text[rows % len(text)], 3)
        loss = objective(model, batch, rng=Rng(0, rows, step), step=step)
        (loss.sum / loss.count).backward()
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1, 2 * (1 - step / steps))
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def distance(model, table):
    """Total variation of (x_2, x_3) from a chain of that table, mean over x_1; sampled at n a token."""
    n, far = 4000, []
    for x_1 in range(len(table)):
        hidden, _ = model.states(torch.tensor([[0]]))
        ctx, first = model.context(hidden[:, -1].expand(n, -1)), torch.full((n,), x_1)
        drawn = model.head.sample(ctx, Warp(), Rng(0, torch.arange(n)), first=first).tokens
        found = torch.bincount(drawn[:, 1] * len(table) + drawn[:, 2], minlength=len(table) ** 2) / n
        far.append(float((found - (table[x_1][:, None] * table).flatten()).abs().sum() / 2))
    return sum(far) / len(far)


def product_distance(table):
    """The same of a head that has both marginals right and knows no more."""
    far = [
        (table[x][:, None] * table - table[x][:, None] * (table[x] @ table)).abs().sum() / 2 for x in range(len(table))
    ]
    return float(sum(far) / len(far))


def test_a_head_learns_to_read_the_trunks_noise():
    trunk, table = markov(6)
    far = distance(trained(trunk, walks(table, 2000, 16), 300), table)
    assert far < 0.45 * product_distance(table)


def test_a_law_other_than_the_trunks_is_learned_with_noise_of_ones_own():
    """Slices of the trunk say which words it would have written, not which the head will."""
    trunk, _ = markov(6)
    table = (1.5 * torch.randn(6, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)).softmax(-1)
    text = walks(table, 2000, 16)
    own, by_trunk = (distance(trained(trunk, text, 300, own=n), table) for n in (1, 0))
    assert own < 0.45 * product_distance(table) and by_trunk > 2 * own
