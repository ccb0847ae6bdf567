"""A chain on a lattice: one law for the likelihood, the serial draw and the one-pass draw; wrong draws are caught."""

import itertools
from dataclasses import replace

import pytest
import torch
from scipy import stats

from flowmap.rng import Rng
from flowmap.warp import Warp
from mtp.heads import lattice
from mtp.heads.base import BlockContext
from mtp.heads.chains import FirstOrderChain
from mtp.heads.independent import IndependentHead
from mtp.heads.lattice import LatticeChain, compose
from mtp.losses import linear_nll

V, D, C, N = 6, 8, 3, 60_000


def context(anchors=1, bias=False, scale=0.3):
    """Rows of one law for anchors > 1: the same state, anchors times."""
    g = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    hidden = scale * draw(1, D)
    return BlockContext(hidden.expand(anchors, -1), draw(V, D), draw(V, D), draw(V) if bias else None)


def states(anchors=7):
    """Rows of different laws."""
    hidden = torch.randn(anchors, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return replace(context(bias=True), hidden=hidden)


def head(block_size=3, candidates=C, trained=True):
    torch.manual_seed(0)
    made = LatticeChain(D, V, block_size, rank=6, candidates=candidates).double()
    if trained:
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        torch.nn.init.normal_(made.readout, std=1.0)
    return made


def all_blocks(block_size):
    return torch.tensor(list(itertools.product(range(V), repeat=block_size)))


@torch.no_grad()
def law(made, block_size, first=None):
    """log q of every block, (V^K,)."""
    blocks = all_blocks(block_size)
    log_q = made.log_prob(context(len(blocks)), blocks).double()
    if first is not None:
        log_q[:, 0] = torch.where(blocks[:, 0] == first, 0.0, -torch.inf)
    return log_q.sum(1)


def pvalue(tokens, log_q):
    """χ² of whole blocks."""
    n, size = tokens.shape
    observed = torch.bincount((tokens * V ** torch.arange(size - 1, -1, -1)).sum(1), minlength=V**size).double()
    expected = log_q.exp() * n
    assert observed[expected == 0].sum() == 0
    big = expected > 5
    rest = torch.stack([observed[~big].sum(), expected[~big].sum()]).clamp_min(1e-9)
    observed, expected = torch.cat([observed[big], rest[:1]]), torch.cat([expected[big], rest[1:]])
    return stats.chisquare(observed, expected * (observed.sum() / expected.sum())).pvalue


def gumbels(n, block_size):
    uniform = torch.rand(n, block_size, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return -(-uniform.log()).log()


@torch.no_grad()
def one_pass(made, n=N, **options):
    return made.sample_one_pass(context(n), Rng(5, torch.arange(n)), **options)


@pytest.mark.parametrize("block_size", [2, 3, 4, 5])
@pytest.mark.parametrize("candidates", [1, 3, 50])
def test_probabilities_over_all_blocks_sum_to_one(block_size, candidates):
    total = law(head(block_size, candidates), block_size).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-5)  # fp32 log-softmax


def loop_log_prob(made, ctx, x):
    """The formula, row by row and position by position, in float64."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    base, shift = made.projection(ctx.hidden, x.shape[1] - 1), made.shift(ctx.hidden)
    for n, k in itertools.product(range(len(x)), range(x.shape[1])):
        if k == 0:
            out[n, 0] = ctx.first_logits()[n].log_softmax(-1)[x[n, 0]]
            continue
        u = ctx.unembedding @ base[n, k - 1] + (0 if ctx.bias is None else ctx.bias)
        inside = u.argsort(descending=True)[: made.candidates]
        outside = torch.tensor([v for v in range(len(u)) if v not in inside])
        escape = (u[outside].logsumexp(0) - u[inside].logsumexp(0) + shift[n, k - 1]).sigmoid()
        scores = u + made.readout @ made.token.weight[x[n, k - 1]]
        probs = torch.zeros_like(u)
        probs[inside] = (1 - escape) * scores[inside].softmax(0)
        probs[outside] = escape * u[outside].softmax(0)
        out[n, k] = probs[x[n, k]].log()
    return out


@torch.no_grad()
def test_log_prob_is_the_formula_on_and_off_the_lattice():
    made, ctx = head(4), states(40)
    x = torch.randint(V, (40, 4), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(made.log_prob(ctx, x).double(), loop_log_prob(made, ctx, x), atol=1e-5)


@torch.no_grad()
def test_every_token_has_finite_density_however_sharp_the_state():
    made, blocks = head(2), all_blocks(2)
    ctx = context(len(blocks), scale=50)  # the escape's mass underflows
    log_q = made.log_prob(ctx, blocks)
    assert torch.isfinite(log_q).all() and log_q.min() < -104  # exp of less is 0 in fp32


def test_a_fresh_one_is_the_independent_head():
    ctx, blocks = states(), all_blocks(3)[:7]
    fresh, independent = head(trained=False), IndependentHead(D, V, 3).double()
    independent.projection.load_state_dict(fresh.projection.state_dict())
    assert torch.allclose(fresh.log_prob(ctx, blocks), independent.log_prob(ctx, blocks), atol=1e-5)


def test_where_the_lattice_holds_all_the_mass_it_is_the_first_order_chain():
    made, chain = head(candidates=V), FirstOrderChain(D, V, 3, rank=6).double()
    chain.load_state_dict({name: x for name, x in made.state_dict().items() if "shift" not in name})
    ctx = replace(states(), bias=torch.tensor([0.0] * (V - 1) + [-60.0], dtype=torch.float64))
    blocks = all_blocks(3)[:7] % (V - 1)
    assert torch.allclose(made.log_prob(ctx, blocks), chain.log_prob(ctx, blocks), atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 5 * V, 10**6])  # rows per chunk: 1, 5, all
@pytest.mark.parametrize("bias", [False, True])
def test_nll_is_the_naive_masked_sum_and_so_is_its_gradient(monkeypatch, chunk, bias):
    monkeypatch.setattr(linear_nll, "CHUNK_LOGITS", chunk)
    made, ctx = head(4), states()
    leaves = [x.clone().requires_grad_() for x in (ctx.hidden, ctx.unembedding, ctx.bias)]
    ctx = replace(ctx, hidden=leaves[0], unembedding=leaves[1], bias=leaves[2] if bias else None)
    g = torch.Generator().manual_seed(3)
    targets, mask = torch.randint(V, (7, 4), generator=g), torch.rand(7, 4, generator=g) < 0.7
    weights = torch.tensor([1.0, 0.5, 2.0, 1.5])
    got = made.nll(ctx, targets, mask, weights)
    everything = [*made.parameters(), *(leaves if bias else leaves[:2])]
    grads = torch.autograd.grad(3 * got.loss, everything)
    assert got.count.tolist() == [0, *mask[:, 1:].sum(0).tolist()]
    for log_q in (made.log_prob(ctx, targets), loop_log_prob(made, ctx, targets)):
        naive = -log_q.double() * mask * torch.tensor([0, 1, 1, 1])  # position 1 is the trunk's
        assert torch.allclose(got.sum.double(), naive.sum(0), atol=1e-4)
        expected = torch.autograd.grad(3 * (naive * weights).sum(), everything)
        for one, other in zip(grads, expected, strict=True):
            assert torch.allclose(one, other, atol=1e-4)
    with torch.no_grad():
        unchanged = made.nll(ctx, targets, mask, weights)
    assert torch.allclose(unchanged.loss, got.loss, atol=1e-4) and torch.allclose(unchanged.sum, got.sum, atol=1e-4)


def test_under_bf16_autocast_the_law_stays_in_fp32():
    made, ctx = head(4).float(), states()
    ctx = BlockContext(*(x.float() for x in (ctx.hidden, ctx.embedding, ctx.unembedding, ctx.bias)))
    targets = torch.randint(V, (7, 4), generator=torch.Generator().manual_seed(3))
    exact = made.nll(ctx, targets, torch.ones(7, 4)).sum
    with torch.autocast("cpu", torch.bfloat16):
        got = made.nll(ctx, targets, torch.ones(7, 4))
        draft = made.sample_one_pass(ctx, Rng(0, torch.arange(7)))
    assert got.sum.dtype == draft.log_q.dtype == torch.float32
    assert torch.allclose(got.sum, exact, rtol=0.05)
    assert all(g.isfinite().all() for g in torch.autograd.grad(got.loss, list(made.parameters())))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 15])
def test_the_scan_composes_as_a_loop_does(count):
    maps = torch.randint(4, (50, count, 4), generator=torch.Generator().manual_seed(count))
    state, expected = torch.arange(4).expand(50, 4), []
    for k in range(count):
        state = maps[:, k].gather(-1, state)
        expected.append(state)
    assert torch.equal(compose(maps), torch.stack(expected, 1))


@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 5, 16])
@torch.no_grad()
def test_one_pass_draws_the_very_tokens_that_the_serial_sampler_draws_from_the_same_gumbels(block_size):
    made, ctx = head(max(block_size, 2)), states(2000)
    noise = gumbels(2000, block_size)
    one = made.sample_one_pass(ctx, noise=noise, block_size=block_size)
    serial = made.sample(ctx, Warp(), noise=noise, block_size=block_size)
    assert torch.equal(one.tokens, serial.tokens)
    assert torch.allclose(one.log_q, serial.log_q, atol=1e-5)
    for a, b in zip(one.logits, serial.logits, strict=True):
        assert torch.allclose(a.log_softmax(-1), b.log_softmax(-1), atol=1e-5)


@pytest.mark.parametrize("noise", ["rng", "gumbel"])
@pytest.mark.parametrize("block_size", [1, 2, 3, 5, 16])
@torch.no_grad()
def test_log_q_of_the_one_pass_draft_is_log_prob_of_its_tokens(noise, block_size):
    made, ctx = head(max(block_size, 2)), states(500)
    source = {"rng": Rng(0, torch.arange(500))} if noise == "rng" else {"noise": gumbels(500, block_size)}
    draft = made.sample_one_pass(ctx, block_size=block_size, **source)
    assert draft.tokens.shape == (500, block_size) and len(draft.logits) == block_size
    assert torch.allclose(draft.log_q, made.log_prob(ctx, draft.tokens), atol=1e-5)
    for k in range(block_size):
        conditional = draft.conditional(k)
        assert torch.allclose(conditional.exp().sum(-1), torch.ones(500), atol=1e-5)
        assert torch.allclose(conditional.gather(1, draft.tokens[:, k : k + 1])[:, 0], draft.log_q[:, k], atol=1e-5)


@torch.no_grad()
def test_an_escape_too_rare_for_its_number_type_has_tokens_all_the_same():
    made, ctx = head(3).float(), states(50)
    ctx = replace(
        ctx,
        hidden=ctx.hidden.float(),
        embedding=ctx.embedding.float(),
        unembedding=ctx.unembedding.float(),
        bias=ctx.bias.float(),
    )
    made.shift.weight.zero_()
    made.shift.bias.fill_(-300.0)
    draft = made.sample_one_pass(ctx, Rng(0, torch.arange(50)))
    assert torch.allclose(draft.log_q, made.log_prob(ctx, draft.tokens), atol=1e-4)


@pytest.mark.parametrize("block_size", [2, 3, 4])
@torch.no_grad()
def test_draws_follow_the_enumerated_law(block_size):
    made = head(block_size)
    log_q = law(made, block_size)
    assert pvalue(one_pass(made).tokens, log_q) > 1e-3
    noise = gumbels(N, block_size)
    assert pvalue(made.sample_one_pass(context(N), noise=noise).tokens, log_q) > 1e-3
    assert pvalue(made.sample(context(N), Warp(), noise=noise).tokens, log_q) > 1e-3
    assert pvalue(made.sample(context(N), Warp(), Rng(6, torch.arange(N))).tokens, log_q) > 1e-3


@pytest.mark.parametrize("warp", [Warp(1.4), Warp(0.7, 0.8), Warp(0.0)])
@torch.no_grad()
def test_the_serial_draw_warps_the_whole_mixture(warp):
    made = head()
    log_q = made.log_prob(context(V**3), all_blocks(3)).view(V, V, V, 3)
    tables = log_q[:, 0, 0, 0], log_q[:, :, 0, 1], log_q[..., 2]
    expected = sum(warp.log_prob(t).view(*t.shape, *[1] * (3 - t.ndim)) for t in tables).double().flatten()
    draft = made.sample(context(N), warp, Rng(7, torch.arange(N)))
    code = (draft.tokens * torch.tensor([V * V, V, 1])).sum(1)
    assert torch.allclose(draft.log_q.sum(1).double(), expected[code], atol=1e-4)
    if warp.temperature > 0:
        assert pvalue(draft.tokens, expected) > 1e-3


def same_gumbels_everywhere(made, monkeypatch):
    return made.sample_one_pass(context(N), noise=gumbels(N, 1).expand(-1, made.block_size, -1)).tokens


def escape_row_at_the_best_candidate(made, monkeypatch):
    right = lattice._previous
    wrong = lambda token, states: right(token, torch.cat([states[..., :-1], states[..., :1]], -1))  # noqa: E731
    monkeypatch.setattr(lattice, "_previous", wrong)
    return one_pass(made).tokens


def slot_two_at_its_best_candidate(made, monkeypatch):
    right = lattice._previous
    monkeypatch.setattr(lattice, "_previous", lambda token, states: right(states[:, 0, 0], states))
    return one_pass(made).tokens


def composed_backwards(made, monkeypatch):
    def wrong(maps):
        out = [maps[:, 0]]
        for k in range(1, maps.shape[1]):
            out.append(out[-1].gather(-1, maps[:, k]))
        return torch.stack(out, 1)

    monkeypatch.setattr(lattice, "compose", wrong)
    return one_pass(made).tokens


def escape_tokens_of_other_rows(made, monkeypatch):
    """Right slot by slot, but the next row was evaluated at another token than the one written."""
    tokens, slots = one_pass(made).tokens, made._slots(context(N), made.block_size)[1].tokens
    for k in range(1, made.block_size):
        escaped = (tokens[:, k, None] != slots[:, k - 1]).all(-1).nonzero()[:, 0]
        tokens[escaped, k] = tokens[escaped.roll(1), k]
    return tokens


@pytest.mark.parametrize(
    "wrong",
    [
        same_gumbels_everywhere, escape_row_at_the_best_candidate, slot_two_at_its_best_candidate,
        composed_backwards, escape_tokens_of_other_rows,
    ],
)  # fmt: skip
@torch.no_grad()
def test_wrong_draws_are_caught(wrong, monkeypatch):
    made = head(4)
    log_q = law(made, 4)
    assert pvalue(wrong(made, monkeypatch), log_q) < 1e-10


@pytest.mark.parametrize("known", range(V))
@torch.no_grad()
def test_a_known_first_token_is_kept_on_or_off_the_lattice(known):
    made, n = head(), 20_000
    first = torch.full((n,), known)
    log_q = law(made, 3, first=known)
    serial = made.sample(context(n), Warp(), Rng(1, torch.arange(n)), first=first)
    for draft in (one_pass(made, n, first=first), serial):
        assert (draft.tokens[:, 0] == known).all() and (draft.log_q[:, 0] == 0).all()
        assert pvalue(draft.tokens, log_q) > 1e-3


@torch.no_grad()
def test_a_row_draws_the_same_block_in_any_batch():
    made, ctx = head(4), states(9)
    whole = made.sample_one_pass(ctx, Rng(3, torch.arange(9)))
    part = replace(ctx, hidden=ctx.hidden[4:6])
    assert torch.equal(made.sample_one_pass(part, Rng(3, torch.arange(4, 6))).tokens, whole.tokens[4:6])


def test_what_it_cannot_do_it_says():
    made, ctx = head(), states()
    rng = Rng(0, torch.arange(7))
    for warp in (Warp(0.7), Warp(top_p=0.9), Warp(0.0)):
        with pytest.raises(NotImplementedError, match="depends on that token"):
            made.sample_one_pass(ctx, rng, warp=warp)
    with pytest.raises(NotImplementedError, match="Gumbels"):
        made.sample_one_pass(ctx, noise=torch.rand(7, 3))
    with pytest.raises(ValueError, match="rng or noise"):
        made.sample_one_pass(ctx)
    with pytest.raises(ValueError, match="built for"):
        made.sample_one_pass(ctx, rng, block_size=4)
    with pytest.raises(ValueError, match="candidates 0"):
        head(candidates=0)
