"""The noise head: its law by quadrature, one pass, and verification under the trunk's own noise."""

import itertools

import pytest
import torch
from scipy import stats

from flowmap.rng import Rng
from flowmap.warp import Warp, inverse_cdf
from mtp import MTPForCausalLM
from mtp.decoding.direct import pad_left
from mtp.decoding.speculative import VERIFY, decode_verified
from mtp.heads import build_head
from mtp.heads.base import BlockContext
from mtp.heads.noise import NoiseHead
from tests.mtp.test_speculative import PROMPTS, alone, build
from tests.mtp.test_text_noise import markov

V, D, K = 4, 8, 4


def context(rows, same=True, dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=dtype)  # noqa: E731
    hidden = draw(1, D).expand(rows, -1) if same else draw(rows, D)
    return BlockContext(hidden, draw(V, D), 0.3 * draw(V, D), 0.3 * draw(V))


def head(block_size=K, dtype=torch.float32, **options):
    """A head whose laws hang on their noise, inside a token's slice too."""
    torch.manual_seed(0)
    made = NoiseHead(D, V, block_size, rank=6, frequencies=3, **options).to(dtype)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.normal_(made.from_noise.weight, std=1.0)
    return made


def uniforms(rows, size=K, seed=0):
    return Rng(seed, torch.arange(rows)).uniform("noise", rows, size)


def gumbels(rows, size=K, seed=0):
    uniform = Rng(seed, torch.arange(rows)).uniform("g", rows, size, V, dtype=torch.float64)
    return (-(-uniform.log()).log()).float()


def code(tokens):
    return (tokens * V ** torch.arange(tokens.shape[1] - 1, -1, -1)).sum(1)


def pvalue(tokens, law):
    """χ² of blocks against their probabilities (V^K,)."""
    n, observed = len(tokens), torch.bincount(code(tokens), minlength=len(law)).double()
    expected, big = law * n, law * n > 5
    rest = torch.tensor([n - observed[big].sum(), n - expected[big].sum()]).clamp_min(1e-9)
    return stats.chisquare(torch.cat([observed[big], rest[:1]]), torch.cat([expected[big], rest[1:]])).pvalue


# The law.


@torch.no_grad()
def quadrature(made, size, points):
    """(V^size,): q by midpoints over u_2..u_{size−1}, on a grid of so many points a side."""
    grid = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    noise = torch.tensor(list(itertools.product(grid.tolist(), repeat=size - 2)))
    ctx, law = context(len(noise)), torch.zeros(V**size, dtype=torch.float64)
    first = ctx.first_logits()[0].double().softmax(-1)
    for x_1 in range(V):
        token = torch.full((len(noise),), x_1)
        p = made.laws(ctx, token, noise).double().softmax(-1)
        found = torch.stack([token, *(inverse_cdf(p[:, k], noise[:, k]) for k in range(size - 2))], 1)
        index = (code(found) * V)[:, None] + torch.arange(V)
        law.index_add_(0, index.flatten(), (first[x_1] * p[:, -1] / len(noise)).flatten())
    return law


@pytest.mark.parametrize("size, points", [(3, 20_000), (4, 400)])
def test_draws_and_estimates_follow_the_integral_over_noise(size, points):
    made, n = head(), 40_000
    law = quadrature(made, size, points)
    assert law.sum().item() == pytest.approx(1, abs=1e-6)
    with torch.no_grad():
        one_pass = made.sample(context(n), Warp(), noise=uniforms(n), block_size=size)
        by_gumbels = made.sample(context(n), Warp(), noise=gumbels(n), block_size=size)
    assert pvalue(one_pass.tokens, law) > 1e-3 and pvalue(by_gumbels.tokens, law) > 1e-3
    blocks = torch.tensor(list(itertools.product(range(V), repeat=size)))
    rng = Rng(0, torch.arange(len(blocks)))
    found = made.estimate_log_prob(context(len(blocks)), blocks, rng, 500)
    p, error = found.log_prob.exp(), found.log_prob.exp() * found.stderr
    assert p.sum().item() == pytest.approx(1, abs=4 * error.square().sum().sqrt().item() + 1e-5)
    assert ((p - law).abs() < 4.5 * error + 2 / points).all()  # a midpoint may lie in the next slice
    independent = torch.stack([p.double().softmax(-1) for p in one_pass.logits], 1).mean(0)
    product = independent[0]
    for k in range(1, size):
        product = (product[:, None] * independent[k]).flatten()
    assert pvalue(one_pass.tokens, product) < 1e-6  # the noise does tie the tokens together


def test_few_draws_bound_every_beginning_and_are_tight_where_laws_are_constant():
    made, repeats, size = head(), 400, 4
    blocks = torch.tensor(list(itertools.product(range(V), repeat=size)))
    rows = torch.arange(len(blocks)).repeat_interleave(repeats)
    rng = Rng(0, torch.arange(len(rows)))
    bound = -made.estimate_prefixes(context(len(rows)), blocks[rows], rng, 2).log_prob.view(len(blocks), repeats, size)
    mean, error = bound.mean(1), bound.std(1) / repeats**0.5
    loose = 0.0
    for k, points in ((2, 1), (3, 20_000), (4, 400)):
        law = quadrature(made, k, points) + (2 / points if k > 2 else 0)
        nats = -law.log().repeat_interleave(V ** (size - k))
        assert (mean[:, k - 1] > nats - 4.5 * error[:, k - 1] - 1e-5).all()
        loose = max(loose, float((mean[:, k - 1] - nats).max()))
    assert loose > 0.01
    torch.nn.init.zeros_(made.from_noise.weight)
    bound = -made.estimate_log_prob(context(len(blocks)), blocks, Rng(0, torch.arange(len(blocks))), 2).log_prob
    assert torch.allclose(bound.double(), -quadrature(made, 4, 1500 // V).log(), atol=0.1)
    exact = made.estimate_log_prob(context(len(blocks)), blocks, Rng(1, torch.arange(len(blocks))), 3)
    assert torch.allclose(bound.double(), -exact.log_prob, atol=1e-5)


def test_a_fresh_head_is_the_independent_one():
    made, ctx = NoiseHead(D, V, K), context(6, same=False)
    independent = build_head("independent", hidden_size=D, embedding_size=D, vocab_size=V, block_size=K)
    independent.projection.load_state_dict(made.projection.state_dict())
    for noise in (uniforms(6), gumbels(6)):
        ours, theirs = (one.sample(ctx, Warp(), noise=noise) for one in (made, independent))
        assert torch.equal(ours.tokens, theirs.tokens) and torch.allclose(ours.log_q, theirs.log_q, atol=1e-5)
    blocks = torch.randint(V, (6, K), generator=torch.Generator().manual_seed(0))
    found = made.estimate_prefixes(ctx, blocks, Rng(0, torch.arange(6)), 2).log_prob
    assert torch.allclose(found, independent.log_prob(ctx, blocks).double().cumsum(1), atol=1e-5)


# One draw.


def test_one_pass_is_what_the_steps_write():
    """top_k = V changes no law, but makes positions follow one another."""
    made, ctx = head(dtype=torch.float64), context(500, same=False, dtype=torch.float64)
    first = torch.arange(500) % V
    for known in (None, first):
        at_once, stepped = (
            made.sample(ctx, warp, noise=uniforms(500).double(), first=known) for warp in (Warp(), Warp(top_k=V))
        )
        assert torch.equal(at_once.tokens, stepped.tokens)
        assert torch.allclose(at_once.log_q, stepped.log_q, atol=1e-5)
        for a, b in zip(at_once.logits, stepped.logits, strict=True):
            assert torch.allclose(a, b, atol=1e-4)


def test_the_network_is_called_once_for_a_block():
    made, ctx, calls = head(), context(3), []
    made.layers[0].register_forward_hook(lambda *_: calls.append(1))
    made.sample(ctx, Warp(), noise=uniforms(3))
    assert len(calls) == 1
    made.sample(ctx, Warp(0.7), noise=uniforms(3))
    assert len(calls) == 1 + K - 1


@pytest.mark.parametrize("warp", [Warp(), Warp(0.7, 0.8), Warp(0.0)])
@pytest.mark.parametrize("noise", [uniforms(50), gumbels(50)], ids=["uniforms", "gumbels"])
def test_log_q_is_the_law_told(warp, noise):
    draft = head().sample(context(50, same=False), warp, noise=noise)
    for k in range(K):
        law = draft.conditional(k)
        assert torch.allclose(law.exp().sum(-1), torch.ones(50), atol=1e-5)
        assert torch.allclose(law.gather(1, draft.tokens[:, k : k + 1])[:, 0], draft.log_q[:, k], atol=1e-5)
        if warp.temperature and noise.ndim == 2:
            assert torch.equal(inverse_cdf(law.exp(), noise[:, k]), draft.tokens[:, k])


def test_no_position_is_told_its_own_noise_or_a_later_one():
    made, ctx, noise = head(), context(1), uniforms(1)
    first = torch.tensor([2])
    before = made.sample(ctx, Warp(), noise=noise, first=first).logits
    for k in range(1, K):
        changed = noise.clone()
        changed[:, k] = (changed[:, k] + 0.37) % 1
        after = made.sample(ctx, Warp(), noise=changed, first=first).logits
        assert all(torch.equal(a, b) for a, b in zip(after[: k + 1], before, strict=False))
        assert all(not torch.equal(after[j], before[j]) for j in range(k + 1, K))


def test_a_shorter_block_is_the_beginning_of_a_whole_one():
    made, ctx = head(), context(9, same=False)
    whole = made.sample(ctx, Warp(), noise=uniforms(9))
    for size in (1, 2, 3):
        part = made.sample(ctx, Warp(), noise=uniforms(9)[:, :size], block_size=size)
        assert torch.equal(part.tokens, whole.tokens[:, :size]) and len(part.logits) == size


def test_what_has_no_closed_form_is_refused_by_name():
    made, ctx = head(), context(2)
    for call in (lambda: made.log_prob(ctx, torch.zeros(2, K).long()), lambda: made.mode(ctx)):
        with pytest.raises(NotImplementedError, match="noise"):
            call()
    whole = torch.zeros(2, K).long(), torch.ones(2, K, dtype=torch.bool)
    with pytest.raises(ValueError, match="needs rng"):
        made.nll(ctx, *whole)
    with pytest.raises(ValueError, match="give the context its past"):
        made.nll(ctx, *whole, rng=Rng(0, torch.arange(2)))


# Verification.


class Oracle(NoiseHead):
    """P_k is the trunk's law after the tokens that its noise has the trunk pick."""

    def __init__(self, table):
        super().__init__(16, len(table), K)
        self.table = table

    def laws(self, ctx, first, noise):
        found, token = [self.table[first]], first
        for u in noise.unbind(1):
            token = inverse_cdf(self.table[token], u.double())
            found.append(self.table[token])
        return torch.stack(found, 1).log()


def test_with_the_trunks_conditionals_one_pass_draws_its_joint_law():
    trunk, table = markov()
    made, n = Oracle(table), 40_000
    model = MTPForCausalLM.from_trunk(trunk)
    hidden, _ = model.states(torch.tensor([[2]]))
    ctx = model.context(hidden[:, -1].expand(n, -1))
    with torch.no_grad():
        drawn = made.sample(ctx, Warp(), noise=uniforms(n, 3), block_size=3).tokens
    law = (table[2][:, None, None] * table[:, :, None] * table[None]).flatten()
    assert pvalue(drawn, law) > 1e-3


def test_with_the_trunks_conditionals_every_token_stands_under_shared_noise():
    trunk, table = markov()
    model = MTPForCausalLM.from_trunk(trunk, "noise", K).eval()
    prompts = [[n % V] for n in range(40)]
    random = decode_verified(model, *pad_left(prompts, 0), max_new_tokens=12, seed=5, verify="inverse-cdf")
    model.head = Oracle(table)
    out = decode_verified(model, *pad_left(prompts, 0), max_new_tokens=12, seed=5, verify="inverse-cdf")
    assert (out.accepted == K).all() and random.accepted_length < 3
    assert torch.equal(out.tokens, random.tokens)


@pytest.mark.parametrize("verify", ["inverse-cdf", "gumbel"])
@pytest.mark.parametrize("warp", [Warp(), Warp(0.7, 0.8)])
def test_shared_noise_writes_the_trunks_own_text_word_for_word(trunk, verify, warp):
    model = build(trunk, "noise", 4)
    out = decode_verified(model, *pad_left(PROMPTS, 0), max_new_tokens=11, warp=warp, seed=9, verify=verify)
    with torch.inference_mode():
        for row, prompt in enumerate(PROMPTS):
            assert out.tokens[row].tolist() == alone(model, prompt, row, 11, warp, 9, verify)


@pytest.mark.parametrize("verify", VERIFY[:2])
@pytest.mark.parametrize("warp", [Warp(), Warp(0.7, 0.9)])
@torch.no_grad()
def test_rules_that_judge_by_the_law_given_the_noise_keep_the_trunks(verify, warp):
    trunk, table = markov()
    model = MTPForCausalLM.from_trunk(trunk, "noise", K).eval()
    model.head = NoiseHead(16, V, K, rank=6, frequencies=3)
    torch.manual_seed(2)
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    law = torch.exp(warp.log_prob(table.log())).double()
    expected = law[2]
    for _ in range(3):
        expected = (expected.view(-1, V)[:, :, None] * law[None]).flatten()
    n = 20_000
    out = decode_verified(model, *pad_left([[1, 2]] * n, 0), max_new_tokens=4, warp=warp, seed=3, verify=verify)
    assert pvalue(out.tokens, expected) > 1e-3
    assert len(set(out.accepted[:, 0].tolist())) > 1
