"""The flow-map head: its law given the noise, its mean over noise, and what it learns of six poker hands."""

import itertools

import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM, LlamaConfig

from flowmap.objectives.tokens import ProgressiveKL, TokenStates
from flowmap.rng import Rng
from flowmap.warp import Warp, inverse_cdf
from mtp import MTPForCausalLM
from mtp.decoding.direct import pad_left
from mtp.decoding.rules import RULES
from mtp.decoding.speculative import decode_verified
from mtp.heads import build_head
from mtp.heads.base import BlockContext
from mtp.heads.flow_map import FlowMapHead
from mtp.losses import linear_nll
from tests.flowmap.six_hands import ENTROPY, INDEPENDENT, TOKENS, WORDS

V, D, N, K = 5, 8, 6, 4


def context(anchors=N, vocab=V, same=False, dtype=torch.float64, bias=True):
    g = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=dtype)  # noqa: E731
    hidden = draw(1, D).expand(anchors, -1) if same else draw(anchors, D)
    return BlockContext(hidden, draw(vocab, D), draw(vocab, D), draw(vocab) if bias else None)


def head(block_size=K, vocab=V, trained=True, dtype=torch.float64, std=0.4, **options):
    torch.manual_seed(0)
    made = FlowMapHead(D, vocab, block_size, **{"state_size": 4, "num_layers": 1, **options}).to(dtype)
    if trained:  # leave the zeros of the initialisation
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=std)
    return made


def lively(block_size, vocab, steps):
    """A head whose law hangs on its noise, and does not settle on one token; and its context, all rows alike."""
    made = head(block_size, vocab, dtype=torch.float32, std=0.2, steps=steps)
    network = made.map.network
    with torch.no_grad():
        for zero in (made.projection.down, *network.modulate.parameters(), network.write.bias):
            zero.zero_()
        network.write.weight.normal_(std=0.3)

    def rows(count):
        same = context(count, vocab, same=True, dtype=torch.float32, bias=False)
        return BlockContext(0.3 * same.hidden, same.embedding, same.unembedding)

    return made, rows


def uniforms(rows=N, size=K, seed=0):
    return Rng(seed, torch.arange(rows)).uniform("noise", rows, size)


def gumbels(rows=N, size=K, vocab=V):
    return -(-torch.rand(rows, size, vocab, generator=torch.Generator().manual_seed(0)).log()).log()


# One draw, and its law given the noise.


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("warp", [Warp(), Warp(0.7, 0.8), Warp(0.0)])
@pytest.mark.parametrize("given", ["rng", "uniforms", "gumbels"])
def test_log_q_is_the_law_told(steps, warp, given):
    made, ctx = head(steps=steps), context()
    noise = {
        "rng": {"rng": Rng(0, torch.arange(N))},
        "uniforms": {"noise": uniforms()},
        "gumbels": {"noise": gumbels()},
    }
    draft = made.sample(ctx, warp, **noise[given])
    assert draft.tokens.shape == draft.log_q.shape == (N, K)
    assert torch.allclose(draft.conditional(0), warp.log_prob(ctx.first_logits()))
    for k in range(K):
        law = draft.conditional(k)
        assert torch.allclose(law.exp().sum(-1), torch.ones(N), atol=1e-5)
        assert torch.allclose(law.gather(1, draft.tokens[:, k : k + 1])[:, 0], draft.log_q[:, k], atol=1e-5)
        if given == "gumbels" and warp.temperature:
            assert torch.equal((law + gumbels()[:, k]).argmax(-1), draft.tokens[:, k])


@pytest.mark.parametrize("noise", [uniforms(), gumbels()], ids=["uniforms", "gumbels"])
def test_a_row_and_its_noise_give_the_same_tokens_in_any_batch(noise):
    made, ctx = head(steps=2), context()
    whole = made.sample(ctx, Warp(), noise=noise)
    rows = torch.tensor([4, 1])
    part = made.sample(
        BlockContext(ctx.hidden[rows], ctx.embedding, ctx.unembedding, ctx.bias), Warp(), noise=noise[rows]
    )
    assert torch.equal(part.tokens, whole.tokens[rows]) and torch.allclose(part.log_q, whole.log_q[rows], atol=1e-6)
    other = made.sample(ctx, Warp(), noise=noise.roll(1, 0))
    assert not torch.equal(other.conditional(2), whole.conditional(2))


def test_every_place_of_the_noise_moves_z():
    made, ctx = head(), context(same=True, anchors=1)
    before = made.sample(ctx, Warp(), noise=uniforms(1), first=torch.tensor([2])).conditional(1)
    for k in range(K):
        changed = uniforms(1)
        changed[0, k] += 2**-24
        after = made.sample(ctx, Warp(), noise=changed, first=torch.tensor([2])).conditional(1)
        assert not torch.allclose(before, after, atol=1e-3)


def test_a_first_token_that_is_known_is_kept_and_the_rest_is_told_of_it():
    made, ctx, first = head(), context(), torch.arange(N) % V
    draft = made.sample(ctx, Warp(), noise=uniforms(), first=first)
    assert torch.equal(draft.tokens[:, 0], first) and not draft.log_q[:, 0].any()
    other = made.sample(ctx, Warp(), noise=uniforms(), first=(first + 1) % V)
    assert all(not torch.allclose(draft.conditional(k), other.conditional(k), atol=1e-3) for k in range(1, K))


def test_a_shorter_block_is_the_beginning_of_a_whole_one():
    made, ctx, rng = head(steps=2), context(), Rng(3, torch.arange(N))
    whole = made.sample(ctx, Warp(), rng)
    for size in (1, 2, 3):
        part = made.sample(ctx, Warp(), rng, block_size=size, first=whole.tokens[:, 0])
        assert part.tokens.shape == (N, size) and len(part.logits) == size
        assert all(torch.allclose(part.conditional(k), whole.conditional(k)) for k in range(size))
    with pytest.raises(ValueError, match="built for"):
        made.sample(ctx, Warp(), rng, block_size=K + 1)


def test_a_step_is_one_call_of_the_network():
    made, ctx, calls = head(), context(), []
    made.map.network.register_forward_hook(lambda *_: calls.append(1))
    for steps in (1, 2, 5):
        made.steps = steps
        calls.clear()
        made.sample(ctx, Warp(), noise=uniforms())
        assert len(calls) == steps
    made.steps = 0
    with pytest.raises(ValueError, match="at least"):
        made.sample(ctx, Warp(), noise=uniforms())


def test_a_fresh_head_is_the_independent_one_at_one_step():
    made, ctx = head(trained=False, dtype=torch.float32), context(dtype=torch.float32)
    independent = build_head("independent", hidden_size=D, embedding_size=D, vocab_size=V, block_size=K)
    independent.projection.load_state_dict(made.projection.state_dict())
    blocks = torch.randint(V, (N, K), generator=torch.Generator().manual_seed(0))
    found = made.estimate_log_prob(ctx, blocks, Rng(0, torch.arange(N)), 3)
    assert torch.allclose(found.log_prob.float(), independent.log_prob(ctx, blocks).sum(1), atol=1e-5)
    assert found.stderr.max() < 1e-6
    assert torch.equal(
        made.sample(ctx, Warp(), noise=uniforms()).tokens, independent.sample(ctx, Warp(), noise=uniforms()).tokens
    )


def test_half_precision_draws():
    made, ctx = head(dtype=torch.bfloat16, steps=2), context(dtype=torch.bfloat16)
    assert torch.isfinite(made.sample(ctx, Warp(), noise=uniforms()).log_q).all()


# Verification by the law given the noise.

W, L = 3, 2
"""Words, and drafted tokens after the first."""
TARGET = [
    (1.5 * torch.randn(W**k, W, generator=torch.Generator().manual_seed(7), dtype=torch.float64)).log_softmax(-1)
    for k in range(L + 2)
]


def code(tokens):
    found = torch.zeros(len(tokens), dtype=torch.long)
    for column in tokens.T:
        found = found * W + column
    return found


def pvalue(rule, law, n=200_000, steps=1):
    """χ² of whole texts of four tokens: the first and all that is not drafted by the target, two drafted by the head."""
    g = torch.Generator().manual_seed(0)
    draw = lambda k, before: inverse_cdf(  # noqa: E731
        TARGET[k][code(before)].exp(), torch.rand(n, generator=g, dtype=torch.float64)
    )
    first = draw(0, torch.zeros(n, 0, dtype=torch.long))
    made, rows = lively(L + 1, W, steps)
    noise = torch.nn.functional.pad(uniforms(n, L), (1, 0))  # as decoding.speculative gives it
    with torch.no_grad():
        draft = made.sample(rows(n), Warp(), noise=noise, first=first)
    log_q = law(first, torch.stack([draft.conditional(k) for k in range(1, L + 1)], 1).double())
    log_p = torch.stack([TARGET[k][code(draft.tokens[:, :k])] for k in range(1, L + 2)], 1)
    verdict = rule(log_p, log_q, draft.tokens[:, 1:], torch.rand(n, L, generator=g, dtype=torch.float64))
    after = inverse_cdf(verdict.law, torch.rand(n, generator=g, dtype=torch.float64))
    out = draft.tokens[:, :1]
    for k in range(1, L + 2):
        token = torch.where(verdict.kept == k - 1, after, draw(k, out))
        if k <= L:
            token = torch.where(k <= verdict.kept, draft.tokens[:, k], token)
        out = torch.cat([out, token[:, None]], 1)
    expected = torch.zeros(1, dtype=torch.float64)
    for k in range(L + 2):
        expected = (expected[:, None] + TARGET[k]).flatten()
    return stats.chisquare(torch.bincount(code(out), minlength=W ** (L + 2)), expected.exp() * n).pvalue


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", RULES)
def test_a_draft_verified_by_its_law_given_the_noise_follows_the_targets(name, steps):
    assert pvalue(RULES[name], lambda first, law: law, steps=steps) > 1e-3


@pytest.mark.parametrize("name", RULES)
def test_the_law_of_another_rows_noise_is_caught(name):
    def another(first, law):
        """Of some other row with the same first token: what knows x_1 but not z."""
        order = first.argsort(stable=True)
        found = torch.empty_like(law)
        found[order] = law[order.roll(1)]
        return found

    assert pvalue(RULES[name], another) < 1e-10


@pytest.mark.parametrize("verify", ["token", "block", "gumbel", "inverse-cdf"])
def test_the_verified_decoder_takes_the_head(verify):
    """Shared noise: word for word the text that the trunk writes with that noise under any other head."""
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = MTPForCausalLM.from_trunk(AutoModelForCausalLM.from_config(config).eval(), "independent", 4).eval()
    ids, mask = pad_left([[3, 7, 1], [5]], 0)
    found = []
    for made in (model.head, FlowMapHead(16, 20, 4, state_size=4)):
        model.head = made
        found.append(decode_verified(model, ids, mask, max_new_tokens=12, seed=2, verify=verify))
    assert (found[1].accepted.sum(1) >= 12).all()
    if verify in ("gumbel", "inverse-cdf"):
        assert torch.equal(found[0].tokens, found[1].tokens)


# The law over noise.


@pytest.mark.parametrize("steps", [1, 3])
def test_estimates_over_all_blocks_sum_to_one_and_are_the_frequencies_of_draws(steps):
    n, (made, rows) = 60_000, lively(3, W, steps)
    blocks = torch.tensor(list(itertools.product(range(W), repeat=3)))
    found = made.estimate_log_prob(rows(len(blocks)), blocks, Rng(0, torch.arange(len(blocks))), 3000)
    p = found.log_prob.exp()
    error = float((p * found.stderr).square().sum().sqrt())
    assert p.sum().item() == pytest.approx(1, abs=4 * error) and error < 0.01
    with torch.no_grad():
        tokens = made.sample(rows(n), Warp(), Rng(5, torch.arange(n))).tokens
    observed = torch.bincount(code(tokens), minlength=W**3) / n
    spread = (p * (1 - p) / n + (p * found.stderr).square()).sqrt()
    assert ((observed - p) / spread).square().sum() < stats.chi2.ppf(1 - 1e-4, W**3)


def test_estimates_are_addressed_and_of_any_length():
    made, ctx = head(std=0.2), context()
    blocks = torch.randint(V, (N, K), generator=torch.Generator().manual_seed(0))
    whole = made.estimate_log_prob(ctx, blocks, Rng(0, torch.arange(N), 7), 50)
    part = made.estimate_log_prob(
        BlockContext(ctx.hidden[2:], ctx.embedding, ctx.unembedding, ctx.bias), blocks[2:], Rng(0, torch.arange(2, N), 7), 50
    )  # fmt: skip
    assert torch.allclose(part.log_prob, whole.log_prob[2:]) and torch.allclose(part.stderr, whole.stderr[2:])
    shorter = [made.estimate_log_prob(ctx, blocks[:, :k], Rng(0, torch.arange(N), 7), 50).log_prob for k in (3, 2, 1)]
    assert all((b > a).all() for a, b in itertools.pairwise([whole.log_prob, *shorter]))
    assert torch.allclose(shorter[-1], ctx.first_logits().log_softmax(-1).gather(1, blocks[:, :1])[:, 0], atol=1e-5)


def test_estimates_of_every_beginning_are_laws_from_any_number_of_draws():
    """Rows that share their noise estimate one law, a mean of products of softmaxes, which sums to one exactly."""
    made, rows = lively(3, W, 2)
    for size in (1, 2, 3):
        blocks = torch.tensor(list(itertools.product(range(W), repeat=size)))
        same = Rng(0, torch.zeros(len(blocks), dtype=torch.long))
        found = made.estimate_prefixes(rows(len(blocks)), blocks, same, 2)
        for k in range(size):  # a beginning stands in W^(size − 1 − k) blocks
            assert found.log_prob[:, k].exp().sum().item() == pytest.approx(W ** (size - 1 - k), rel=1e-4)
        alone = made.estimate_log_prob(rows(len(blocks)), blocks[:, :size], same, 2)
        assert torch.equal(alone.log_prob, found.log_prob[:, -1]) and not found.stderr[:, 0].any()


def test_what_has_no_closed_form_is_refused_by_name():
    made, ctx = head(), context()
    for call in (
        lambda: made.log_prob(ctx, torch.zeros(N, K).long()),
        lambda: made.marginal(ctx),
        lambda: made.mode(ctx),
    ):
        with pytest.raises(NotImplementedError, match="flow-map"):
            call()
    with pytest.raises(ValueError, match="needs rng"):
        made.nll(ctx, torch.zeros(N, K).long(), torch.ones(N, K, dtype=torch.bool))


# The loss.


def case(rows=24):
    g = torch.Generator().manual_seed(4)
    targets = torch.randint(V, (rows, K), generator=g)
    mask = torch.arange(K) < torch.randint(1, K + 1, (rows, 1), generator=g)
    return context(rows), targets, mask, Rng(0, torch.arange(rows), 3)


def test_without_a_mask_the_loss_is_that_of_the_objective_on_tokens():
    """Its sum of cross-entropy and progressive KL on whole logits; codes learn by the first alone."""
    made, (ctx, targets, _, rng) = head(diagonal=0.5), case()
    got = made.nll(ctx, targets, torch.ones_like(targets, dtype=torch.bool), rng=rng).loss
    states = TokenStates(targets[:, 1:], made.given(ctx, targets[:, 0]))
    objective = ProgressiveKL(0.5, boundary=1 / 8, t_min=0.05)
    expected = objective(made.map, states, rng=rng, step=0).sum
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)
    names, parameters = zip(*((n, p) for n, p in made.named_parameters() if "codebook" not in n), strict=True)
    pairs = zip(*(torch.autograd.grad(loss, parameters) for loss in (got, expected)), strict=True)
    for name, (a, b) in zip(names, pairs, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-4), name  # logits are summed up in fp32


def test_codes_learn_on_the_diagonal_alone():
    for diagonal, learns in ((1.0, True), (0.0, False)):
        made, (ctx, targets, mask, rng) = head(diagonal=diagonal), case()
        made.nll(ctx, targets, mask, rng=rng).loss.backward()
        assert bool(made.map.codebook.weight.grad.any()) == learns
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in made.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_a_masked_target_changes_nothing(training):
    made, (ctx, targets, mask, rng) = head(scored=1.0, diagonal=0.5).train(training), case()
    changed = torch.where(mask, targets, (targets + 1) % V)
    one, other = (made.nll(ctx, x, mask, rng=rng) for x in (targets, changed))
    assert torch.equal(one.loss, other.loss) and torch.equal(one.sum, other.sum)
    grads = [torch.autograd.grad(got.loss, made.parameters()) for got in (one, other)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert one.count.tolist() == [0.0, *mask[:, 1:].sum(0).float().tolist()] and one.sum[0] == 0
    nothing = made.nll(ctx, targets, torch.zeros_like(mask), rng=rng)
    assert nothing.loss == 0 and not nothing.sum.any() and not nothing.count.any()


def test_weights_are_of_positions():
    made, (ctx, targets, mask, rng) = head(diagonal=0.5), case()
    parts = [made.nll(ctx, targets, mask, weight, rng=rng).loss for weight in torch.eye(K)]
    whole = made.nll(ctx, targets, mask, torch.tensor([9.0, 1.0, 0.5, 2.0]), rng=rng).loss
    assert parts[0] == 0 and torch.allclose(whole, parts[1] + 0.5 * parts[2] + 2 * parts[3])


def test_slices_and_chunks_change_nothing(monkeypatch):
    made, (ctx, targets, mask, rng) = head(diagonal=0.5, scored=0.5), case()
    whole = made.nll(ctx, targets, mask, rng=rng)
    expected = torch.autograd.grad(whole.loss, made.parameters())
    parts = []
    for rows in (slice(0, 9), slice(9, 24)):
        part = BlockContext(ctx.hidden[rows], ctx.embedding, ctx.unembedding, ctx.bias)
        parts.append(made.nll(part, targets[rows], mask[rows], rng=Rng(0, torch.arange(24)[rows], 3)))
    for name in ("loss", "sum", "count"):
        assert torch.allclose(getattr(whole, name), sum(getattr(part, name) for part in parts))
    monkeypatch.setattr(linear_nll, "CHUNK_LOGITS", 4 * V * (K - 1))
    chunked = made.nll(ctx, targets, mask, rng=rng)
    assert torch.allclose(chunked.loss, whole.loss) and torch.allclose(chunked.sum, whole.sum)
    grads = torch.autograd.grad(chunked.loss, made.parameters())
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(grads, expected, strict=True))


def test_no_anchors_no_loss():
    made = head()
    none = made.nll(
        context(0), torch.zeros(0, K).long(), torch.zeros(0, K, dtype=torch.bool), rng=Rng(0, torch.arange(0))
    )
    none.loss.backward()
    assert none.loss == 0 and none.count.sum() == 0


def test_the_bound_of_a_denoiser_that_looks_at_nothing_is_known_in_closed_form():
    """A fresh head's p is that of the words alone at every time, so the bound is Σ −log p + ½ S(t_min) ‖c − Cᵀp‖²."""
    rows = 20_000
    made, ctx = head(trained=False, dtype=torch.float32).eval(), context(rows, same=True, dtype=torch.float32)
    block = torch.tensor([[1, 4, 0, 3]])
    with torch.no_grad():
        got = made.nll(
            ctx, block.expand(rows, -1), torch.ones(rows, K, dtype=torch.bool), rng=Rng(0, torch.arange(rows))
        )
        p, codes = ctx.first_logits()[:1].softmax(-1), made.map.codebook.codes()  # f_k(h) = h
        reading, missed = -p[0, block[0, 1:]].log(), (codes[block[0, 1:]] - p @ codes).square().sum(-1)
    expected = reading + (0.95 / 0.05) ** 2 / 2 * missed
    assert got.count.tolist() == [0.0, *[float(rows)] * (K - 1)]
    torch.testing.assert_close((got.sum / got.count)[1:], expected, rtol=0.05, atol=0)


# Six hands of two words behind a first token that says nothing.


def test_six_hands_are_learned_and_drawn_in_few_steps():
    """Independent words would make a hand in 28% of the draws, at log 6 + H(words) = 3.1 nats; the truth costs log 6."""
    torch.manual_seed(0)
    vocab, width, size, steps = len(WORDS) + 1, 16, 256, 300
    made = FlowMapHead(width, vocab, 3, width=32, num_heads=2, state_size=8)
    tables = torch.randn(2, vocab, width), torch.randn(1, width)
    optimizer = torch.optim.AdamW(made.parameters(), lr=5e-3, weight_decay=0.0)

    def rows(count):
        return BlockContext(tables[1].expand(count, -1), tables[0][0], tables[0][1] / 2)

    def blocks(hands):
        return torch.cat([torch.full((len(hands), 1), vocab - 1), TOKENS[hands]], 1)

    for step in range(steps):
        rng = Rng(0, torch.arange(size), step)
        targets = blocks((rng.uniform("hand", size) * 6).long())
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1, 3 * (1 - step / steps))
        (made.nll(rows(size), targets, torch.ones(size, 3, dtype=torch.bool), rng=rng).loss / (2 * size)).backward()
        optimizer.step()
        optimizer.zero_grad()
    made.eval()
    count, valid, cost = 10_000, {}, {}
    first = torch.full((count,), vocab - 1)
    for made.steps in (1, 4):
        with torch.no_grad():
            drawn = made.sample(rows(count), Warp(), Rng(1, torch.arange(count)), first=first).tokens[:, 1:]
        often = (drawn[:, None] == TOKENS).all(-1).double().mean(0)
        found = made.estimate_log_prob(rows(6), blocks(torch.arange(6)), Rng(2, torch.arange(6)), 2000)
        log_p = found.log_prob - rows(6).first_logits().log_softmax(-1)[:, vocab - 1]
        error = (often * (1 - often) / count + (log_p.exp() * found.stderr).square()).sqrt()
        assert ((often - log_p.exp()) / error).abs().max() < 4.5
        valid[made.steps], cost[made.steps] = float(often.sum()), -float(log_p.mean())
    with torch.no_grad():
        told = torch.ones(count, 3, dtype=torch.bool)
        bound = made.nll(rows(count), blocks(torch.arange(count) % 6), told, rng=Rng(3, torch.arange(count)))
    bound = float((bound.sum / bound.count)[1:].sum())
    assert valid[1] > 0.5 and valid[4] > valid[1] - 0.02
    assert ENTROPY < cost[4] < cost[1] + 0.05 < INDEPENDENT - 0.3
    assert ENTROPY - 0.15 < bound < INDEPENDENT - 0.3  # one deviation is 0.05
