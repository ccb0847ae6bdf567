"""Every head: exact, normalised, causal inside its block, and honest about what it drew."""

import itertools
from dataclasses import replace

import pytest
import torch
from scipy import stats

from flowmap.rng import Rng
from flowmap.warp import Warp
from mtp.heads import NAMES, build_head, family, option_names
from mtp.heads.base import BlockContext
from mtp.heads.past import Past

V, D, N = 5, 8, 3
EXACT = [name for name in NAMES if family(name).exact]
CHAINS = [name for name in EXACT if name.endswith("-chain")]
BLIND = ["independent", "blockwise", "medusa"]
"""Heads whose positions do not see each other."""
OPTIONS = {"rank": 6, "width": 8, "components": 3, "candidates": 3}


def context(dtype=torch.float64, vocab=V, anchors=N, bias=False):
    g = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=dtype)  # noqa: E731
    ctx = BlockContext(draw(anchors, D), draw(vocab, D), draw(vocab, D), draw(vocab) if bias else None)
    rows, place, before = torch.arange(anchors), torch.arange(anchors) % 3, draw(anchors, 3, D)
    before[rows, place] = ctx.hidden
    return replace(ctx, past=Past(before, torch.randint(vocab, (anchors, 3), generator=g), rows, place))


def head(name, block_size=3, vocab=V, trained=True, dtype=torch.float64):
    torch.manual_seed(0)
    made = build_head(
        name,
        hidden_size=D,
        embedding_size=D,
        vocab_size=vocab,
        block_size=block_size,
        **{key: value for key, value in OPTIONS.items() if key in option_names(name)},
    ).to(dtype)
    if trained:  # leave the zeros of the initialisation
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return made


def all_blocks(block_size, vocab=V):
    return torch.tensor(list(itertools.product(range(vocab), repeat=block_size)))


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("block_size", [2, 3, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_probabilities_over_all_blocks_sum_to_one(name, block_size, bias):
    ctx, blocks = context(anchors=1, bias=bias), all_blocks(block_size)
    repeated = ctx.part(torch.zeros(len(blocks), dtype=torch.long))
    total = head(name, block_size).log_prob(repeated, blocks).double().sum(1).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-5)  # fp32 log-softmax


@pytest.mark.parametrize("name", CHAINS)
def test_a_fresh_chain_is_the_independent_head(name):
    ctx, blocks = context(), all_blocks(3)[:N]
    chain, independent = head(name, trained=False), head("independent", trained=False)
    independent.projection.load_state_dict(chain.projection.state_dict())
    assert torch.allclose(chain.log_prob(ctx, blocks), independent.log_prob(ctx, blocks), atol=1e-6)


@pytest.mark.parametrize("name", EXACT)
def test_position_one_is_the_trunks_own_softmax(name):
    ctx, blocks = context(), all_blocks(3)[:N]
    expected = ctx.first_logits().log_softmax(-1).gather(1, blocks[:, :1])
    assert torch.allclose(head(name).log_prob(ctx, blocks)[:, :1].double(), expected, atol=1e-6)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("block_size", [2, 5, 16])
def test_drawing_step_by_step_scores_as_teacher_forcing_does(name, block_size):
    ctx, made = context(), head(name, block_size)
    draft = made.sample(ctx, Warp(), Rng(0, torch.arange(N)))
    assert torch.allclose(draft.log_q, made.log_prob(ctx, draft.tokens), atol=1e-5)
    for k in range(block_size):
        conditional = draft.conditional(k)
        assert torch.allclose(conditional.exp().sum(-1), torch.ones(N), atol=1e-5)
        chosen = conditional.gather(1, draft.tokens[:, k : k + 1])[:, 0]
        assert torch.allclose(chosen, draft.log_q[:, k], atol=1e-5)


@pytest.mark.parametrize("name", EXACT)
def test_draws_follow_the_stated_law(name):
    n, made = 40_000, head(name)
    ctx = context(anchors=1)
    many = ctx.part(torch.zeros(n, dtype=torch.long))
    warp = Warp(temperature=0.8, top_p=0.9)
    with torch.no_grad():
        draft = made.sample(many, warp, Rng(5, torch.arange(n)))
    code = (draft.tokens * torch.tensor([V * V, V, 1])).sum(1)
    expected = torch.zeros(V**3, dtype=torch.float64).scatter_(0, code, draft.log_q.double().sum(1).exp())
    observed = torch.bincount(code, minlength=V**3).double()
    big = expected * n > 5
    rest = torch.tensor([n - observed[big].sum(), n * (1 - expected[big].sum())])
    pvalue = stats.chisquare(torch.cat([observed[big], rest[:1]]), torch.cat([expected[big] * n, rest[1:]])).pvalue
    assert pvalue > 1e-3


@pytest.mark.parametrize("name", EXACT)
def test_no_position_sees_its_own_token_or_a_later_one(name):
    ctx, made, block = context(anchors=1), head(name, 5), torch.tensor([[0, 1, 2, 3, 4]])
    before = made.log_prob(ctx, block)
    for k in range(5):
        changed = block.clone()
        changed[0, k] = (block[0, k] + 1) % V
        after = made.log_prob(ctx, changed)
        assert torch.equal(after[:, :k], before[:, :k])


@pytest.mark.parametrize("name", ["recurrent-chain", "block-chain"])
def test_higher_order_chains_see_past_the_last_token_and_first_order_does_not(name):
    ctx = context(anchors=1)
    a, b = torch.tensor([[0, 1, 2]]), torch.tensor([[3, 1, 2]])
    assert not torch.equal(head(name).log_prob(ctx, a)[0, 2], head(name).log_prob(ctx, b)[0, 2])
    first = head("first-order-chain")
    assert torch.equal(first.log_prob(ctx, a)[0, 2], first.log_prob(ctx, b)[0, 2])


@pytest.mark.parametrize("name", EXACT)
def test_nll_is_the_naive_masked_sum_and_so_is_its_gradient(name):
    ctx, made = context(), head(name)
    targets = torch.tensor([[0, 1, 2], [3, 4, 0], [1, 1, 1]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]], dtype=torch.bool)
    weights = torch.tensor([1.0, 0.5, 2.0])
    got = made.nll(ctx, targets, mask, weights)
    naive = -made.log_prob(ctx, targets) * mask
    naive[:, 0] = 0  # the trunk's
    assert torch.allclose(got.sum, naive.sum(0).float(), atol=1e-5)
    assert got.count.tolist() == [0.0, 2.0, 1.0]
    parameters = list(made.parameters())
    grads = torch.autograd.grad(got.loss, parameters)
    expected = torch.autograd.grad((naive * weights).sum(), parameters)
    for one, other in zip(grads, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", BLIND)
def test_the_marginal_and_mode_of_independent_positions_are_exact(name):
    ctx, made = context(), head(name)
    marginal = made.marginal(ctx)
    blocks = made.mode(ctx)
    assert torch.allclose(made.log_prob(ctx, blocks).double(), marginal.max(-1).values.double(), atol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BLIND])
def test_what_a_head_cannot_do_it_says(name):
    with pytest.raises(NotImplementedError, match=name):
        head(name).marginal(context())


@pytest.mark.parametrize("name", EXACT)
def test_a_first_token_that_is_known_is_kept_and_the_rest_follows_it(name):
    ctx, made, first = context(), head(name), torch.tensor([4, 0, 2])
    draft = made.sample(ctx, Warp(), Rng(1, torch.arange(N)), first=first)
    assert torch.equal(draft.tokens[:, 0], first) and (draft.log_q[:, 0] == 0).all()
    assert torch.allclose(draft.log_q[:, 1:], made.log_prob(ctx, draft.tokens)[:, 1:], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gumbels_draw_the_largest_noisy_logit(name):
    ctx, made = context(), head(name)
    gumbel = torch.randn(N, 3, V, generator=torch.Generator().manual_seed(0))
    draft = made.sample(ctx, Warp(), noise=gumbel)
    for k in range(3):
        assert torch.equal(draft.tokens[:, k], (draft.conditional(k) + gumbel[:, k]).argmax(-1))


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("bias", [False, True])
def test_the_law_of_every_position_is_what_log_prob_reads_from_it(name, bias):
    ctx, made, blocks = context(bias=bias), head(name, 4), all_blocks(4)[::211][:N]
    for size in (2, 4):
        law = made.law(ctx, blocks[:, :size])
        assert law.shape == (N, size - 1, V) and torch.allclose(
            law.exp().sum(-1).double(), torch.ones(N, size - 1).double(), atol=1e-6
        )
        read = law.gather(-1, blocks[:, 1:size, None])[..., 0]
        assert torch.allclose(read.double(), made.log_prob(ctx, blocks[:, :size])[:, 1:].double(), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_block_of_one_token_is_the_trunks_and_no_anchor_is_no_loss(name):
    ctx, made = context(), head(name)
    draft = made.sample(ctx, Warp(), Rng(0, torch.arange(N)), block_size=1)
    assert draft.tokens.shape == (N, 1)
    assert torch.allclose(draft.conditional(0).double(), ctx.first_logits().log_softmax(-1), atol=1e-6)
    none = ctx.part(slice(0, 0))
    empty = torch.zeros(0, 3, dtype=torch.long)
    got = made.nll(none, empty, empty.bool(), rng=Rng(0, torch.arange(0)))
    assert got.loss.item() == 0 and got.count.sum() == 0
    got.loss.backward()


@pytest.mark.parametrize("name", EXACT)
def test_a_shorter_block_has_the_law_of_the_longer_ones_beginning(name):
    ctx, made, blocks = context(), head(name, 5), all_blocks(5)[::997][:N]
    assert torch.allclose(made.log_prob(ctx, blocks)[:, :3], made.log_prob(ctx, blocks[:, :3]), atol=1e-6)


@pytest.mark.parametrize("name", ["mixture", "hidden-markov", "tree"])
def test_one_component_is_independent_and_several_are_not(name):
    ctx = context(anchors=1)
    a, b = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 3, 2]])
    for components, same in ((1, True), (3, False)):
        torch.manual_seed(0)
        made = build_head(
            name, hidden_size=D, embedding_size=D, vocab_size=V, block_size=3, components=components
        ).double()
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        assert torch.allclose(made.log_prob(ctx, a)[0, 2], made.log_prob(ctx, b)[0, 2], atol=1e-6) == same


@pytest.mark.parametrize("name", ["mixture", "hidden-markov", "tree", "mixture-of-chains"])
def test_circuits_are_the_sums_they_are_said_to_be(name):
    """By brute force over all states of the latent."""
    ctx, made, x = context(anchors=1), head(name, 4), torch.tensor([[1, 4, 0, 3]])
    r = made.components
    f, weights = made._inputs(ctx, x[:, 0], 3)[0], made._weights(ctx, x[:, 0])[0].double()
    logits = f @ ctx.unembedding.T
    if name == "mixture-of-chains":
        logits = logits + (made.token(x[0, :-1]) @ made.readout.T)[:, None]
    phi = logits.softmax(-1)[torch.arange(3), :, x[0, 1:]]  # (M, r)
    root, steps = weights[:r].softmax(-1), None
    if name in ("hidden-markov", "tree"):
        steps = weights[r:].view(2, r, r).softmax(-1)
    total = 0.0
    for z in itertools.product(range(r), repeat=3):
        if name == "hidden-markov":
            path = root[z[0]] * steps[0, z[0], z[1]] * steps[1, z[1], z[2]]
        elif name == "tree":  # the pair (3, 4) first, then the root's r sums of (2) × that
            path = sum(root[a] * steps[1, a, z[0]] * steps[0, z[0], z[1]] for a in range(r)) if z[1] == z[2] else 0.0
        else:
            path = root[z[0]] if z[0] == z[1] == z[2] else 0.0
        total = total + path * phi[0, z[0]] * phi[1, z[1]] * phi[2, z[2]]
    assert made.log_prob(ctx, x)[0, 1:].sum().exp().item() == pytest.approx(total.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["blockwise", "medusa"])
def test_a_fresh_baseline_is_the_trunks_next_token_law_at_every_place(name):
    ctx, made = context(), head(name, trained=False)
    assert torch.allclose(
        made.marginal(ctx), ctx.first_logits()[:, None].float().log_softmax(-1).expand(-1, 3, -1), atol=1e-6
    )


@pytest.mark.parametrize("block_size", [1, 17])
def test_block_sizes_out_of_range_are_refused(block_size):
    with pytest.raises(ValueError, match="between 2 and 16"):
        head("independent", block_size)


def test_unknown_names_and_options_name_the_nearest():
    sizes = {"hidden_size": D, "embedding_size": D, "vocab_size": V, "block_size": 2}
    with pytest.raises(ValueError, match="block-chain"):
        build_head("blok-chain", **sizes)
    with pytest.raises(ValueError, match="'rank'"):
        build_head("recurrent-chain", **sizes, rnk=3)


def test_a_tied_correction_is_the_low_rank_table_that_the_unembedding_makes():
    """And the table that is kept while decoding is made again when a weight moves."""
    ctx, blocks = context(), all_blocks(3)[5 : 5 + N]
    tied, free = (
        build_head("block-chain", hidden_size=D, embedding_size=D, vocab_size=V, block_size=3, rank=6, tied=t).double()
        for t in (True, False)
    )
    for parameter in tied.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    for scale in (1.0, -2.0):
        with torch.no_grad():
            tied.readout.mul_(scale)
            free.load_state_dict({**tied.state_dict(), "readout": ctx.unembedding @ tied.readout})
            noise = Rng(0, torch.arange(N)).uniform("n", N, 3)
            ours, theirs = (made.sample(ctx, Warp(), noise=noise) for made in (tied, free))
        assert torch.equal(ours.tokens, theirs.tokens) and torch.allclose(ours.log_q, theirs.log_q, atol=1e-6)
        assert torch.allclose(tied.log_prob(ctx, blocks), free.log_prob(ctx, blocks), atol=1e-6)
    assert build_head("text-chain", hidden_size=D, embedding_size=D, vocab_size=V, block_size=3, rank=6).tied
