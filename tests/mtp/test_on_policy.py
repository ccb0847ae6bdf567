"""Objectives on drawn blocks against their gradients by enumeration of every block."""

from dataclasses import replace

import pytest
import torch

from flowmap.rng import Rng
from flowmap.warp import Warp
from mtp.decoding.rules import token_rule
from mtp.losses import on_policy
from mtp.losses.on_policy import KINDS, RELAXED, TRUNK_KINDS, energy_policy, trunk_policy
from tests.mtp.test_heads import D, V, all_blocks, context, head

K, DRAWS = 3, 6
END = 4
UNBIASED = [kind for kind in KINDS if kind.startswith(("reinforce", "rloo"))]


def trunk(tokens):
    """A trunk of a table: its state after x_k is a function of x_k and x_{k−1}. tokens: (..., M) → (..., M, D)."""
    g = torch.Generator().manual_seed(7)
    table, before = (torch.randn(V, D, generator=g, dtype=torch.float64) * scale for scale in (0.5, 0.3))
    previous = torch.nn.functional.pad(tokens[..., :-1], (1, 0))
    return table[tokens] + before[previous]


def enumerated(made, ctx, first, ends=()):
    """log p and log q of positions 2..K, (V^(K−1), M, V), whole blocks (V^(K−1), K) that begin with `first`, and which
    positions no end token precedes."""
    rest = all_blocks(K - 1)
    blocks = torch.cat([torch.full((len(rest), 1), first), rest], 1)
    many = replace(ctx, hidden=ctx.hidden.expand(len(blocks), -1))
    log_q = made.law(many, blocks).double().log_softmax(-1)  # fp32 sums to one within 1e-7
    log_p = (trunk(blocks[:, :-1]) @ ctx.unembedding.T).log_softmax(-1)
    alive = ~torch.isin(blocks[:, :-1], torch.tensor(ends, dtype=torch.long)).cumsum(1).bool()
    return log_p, log_q, blocks, alive


def exact_value(what, made, ctx, first, ends=()):
    """The objective as its definition has it: a sum over all blocks of their probability and what they are worth."""
    log_p, log_q, blocks, alive = enumerated(made, ctx, first, ends)
    p, q = (x.gather(-1, blocks[:, 1:, None])[..., 0] for x in (log_p, log_q))
    whole = q.sum(1).exp()
    if what in ("accepted", "overlap"):
        return -(whole * ((p - q).clamp_max(0).cumsum(1).exp() * alive).sum(1)).sum()
    if what in ("score", "kl"):
        return (whole * ((q - p) * alive).sum(1)).sum()
    raise ValueError(what)


def points(ctx, blocks):
    return torch.nn.functional.normalize(ctx.embedding, dim=-1)[blocks].flatten(-2)


def exact_energy(made, ctx, y, inside=K - 1):
    _, log_q, blocks, _ = enumerated(made, ctx, int(y[0]))
    whole = log_q.gather(-1, blocks[:, 1:, None])[..., 0].sum(1).exp()
    x, target = points(ctx, blocks[:, 1 : inside + 1]), points(ctx, y[1 : inside + 1])
    scale = points(ctx, blocks[:, 1:]).shape[-1] ** 0.5
    between, to_text = torch.cdist(x, x) / scale, (x - target).norm(dim=-1) / scale
    return 2 * whole @ to_text - whole @ between @ whole


def gradient(value, made):
    parameters = list(made.parameters())
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return torch.cat([(p * 0 if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]).detach()


def estimates(made, ctx, kind, count, first=1, y=None, ends=(), num=DRAWS, mask=None, repeats=20):
    """Gradients in `repeats` runs of count / repeats anchors each, and their values, (repeats, ·)."""
    size = count // repeats
    many = replace(ctx, hidden=ctx.hidden.expand(size, -1))
    gradients, values = [], []
    for seed in range(repeats):
        rng = Rng(seed, torch.arange(size))
        if on_policy.asks_trunk(kind):
            told = torch.full((size,), first)
            policy = trunk_policy(made, many, kind, num, trunk, rng, ends, first=told)
        else:
            mask_ = torch.ones(size, K, dtype=torch.bool) if mask is None else mask.expand(size, -1)
            policy = energy_policy(made, many, kind, num, y.expand(size, -1), mask_, rng)
        gradients.append(gradient(policy.loss.mean(), made))
        values.append(policy.value.mean())
    return torch.stack(gradients).double(), torch.stack(values).double()


def within(sample, exact):
    """Whether the mean of a sample, (repeats, ...), is `exact` within three standard errors, in root mean square over the
    coordinates that vary."""
    error = sample.std(0) / len(sample) ** 0.5
    off = (sample.mean(0) - exact).abs()
    moving = error > 1e-7 + 1e-5 * exact.abs().max()
    return float(off.where(~moving, 0.0).max()) < 1e-4 and float((off / error)[moving].square().mean()) < 9


@pytest.mark.parametrize("ends", [(), (END,)])
@pytest.mark.parametrize("kind", [kind for kind in UNBIASED if on_policy.asks_trunk(kind)])
def test_score_function_gradients_are_unbiased(kind, ends):
    made, ctx = head("block-chain", K), context(anchors=1)
    value = exact_value(kind.partition("-")[2], made, ctx, 1, ends)
    exact = gradient(value, made)
    gradients, values = estimates(made, ctx, kind, 10_000, ends=ends)
    assert within(values[:, None], value.detach()[None])
    assert within(gradients, exact) and not within(gradients, 0.8 * exact)


def test_the_two_forms_of_each_objective_are_one():
    made, ctx = head("recurrent-chain", K), context(anchors=1)
    log_p, log_q, blocks, alive = enumerated(made, ctx, 1, (END,))
    whole = log_q.gather(-1, blocks[:, 1:, None])[..., 0].sum(1).exp().detach()
    arguments = (log_p[:, None], log_q[:, None], blocks[:, None, 1:], alive[:, None].double())
    for plain, summed in (("accepted", "overlap"), ("score", "kl")):
        means = [(whole * on_policy.TERMS[name](*arguments).value[:, 0]).sum() for name in (plain, summed)]
        assert means[0].item() == pytest.approx(means[1].item(), rel=1e-9)
        assert means[0].item() == pytest.approx(exact_value(plain, made, ctx, 1, (END,)).item(), rel=1e-9)


def test_accepted_is_what_the_token_rule_keeps():
    made, ctx, n = head("block-chain", K), context(anchors=1), 100_000
    many = replace(ctx, hidden=ctx.hidden.expand(n, -1))
    first = torch.full((n,), 1)
    draft = made.sample(many, Warp(), Rng(3, torch.arange(n)), first=first)
    log_p = (trunk(draft.tokens) @ ctx.unembedding.T).log_softmax(-1)
    log_q = torch.stack([draft.conditional(k) for k in range(1, K)], 1)
    uniform = Rng(4, torch.arange(n)).uniform("judge", n, K - 1)
    kept = token_rule(log_p.float(), log_q, draft.tokens[:, 1:], uniform).kept.double()
    expected = -exact_value("accepted", made, ctx, 1).item()
    assert abs(kept.mean().item() - expected) < 4 * kept.std().item() / n**0.5


@pytest.mark.parametrize("plain, summed", [("accepted", "overlap"), ("score", "kl")])
def test_summing_out_each_positions_own_token_lowers_the_variance(plain, summed):
    made, ctx = head("block-chain", K), context(anchors=1)
    spread = [estimates(made, ctx, f"rloo-{what}", 4000)[0].var(0).sum() for what in (plain, summed)]
    assert spread[1] < spread[0] / 4


@pytest.mark.parametrize("inside", [K - 1, 1])
@pytest.mark.parametrize("num", [2, DRAWS])
def test_the_energys_score_function_gradient_is_unbiased(num, inside):
    made, ctx, y = head("block-chain", K), context(anchors=1), torch.tensor([1, 0, 3])
    value = exact_energy(made, ctx, y, inside)
    exact = gradient(value, made)
    mask = torch.arange(K)[None] <= inside
    gradients, values = estimates(made, ctx, "rloo-energy", 10_000, y=y, num=num, mask=mask)
    assert within(gradients, exact) and not within(gradients, 0.8 * exact)
    assert within(values[:, None], value.detach()[None])


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a, b, 0))


def test_relaxed_gradients_of_the_energy_point_along_the_exact_one():
    """Biased all; more Gumbels leave ST-Gumbel's mean and lower its variance (2010.04838)."""
    made, ctx, y = head("block-chain", K), context(anchors=1), torch.tensor([1, 0, 3])
    exact = gradient(exact_energy(made, ctx, y), made)
    found = {name: estimates(made, ctx, f"{name}-energy", 4000, y=y)[0] for name in RELAXED}
    for name, sample in found.items():
        assert cosine(sample.mean(0), exact) > 0.5, name
    spread = {name: float(sample.var(0).sum()) for name, sample in found.items()}
    assert spread["gumbel-rao"] < spread["st-gumbel"]
    assert within(found["gumbel-rao"] - found["st-gumbel"], torch.zeros_like(exact))


@pytest.mark.parametrize("name", ["independent", "first-order-chain", "recurrent-chain", "gru-chain", "block-chain"])
def test_relaxed_draws_of_a_chain_are_its_own(name):
    """One-hot, by the law of the head after the tokens drawn; the gradient of a linear f of the last token through the
    last draw alone is straight-through's, whose closed form is Σ_v f(v) ∇q(v)."""
    made, ctx = head(name, K), context()
    first = torch.tensor([1, 3, 0])
    told = []

    def choose(k, log_q):
        told.append(log_q)
        return RELAXED["straight-through"].draw(log_q[:, None], 1, Rng(0, torch.arange(3)), f"/{k}")[0, :, 0]

    soft = made.relaxed(ctx, choose, first)
    tokens = soft.argmax(-1)
    assert torch.equal(soft.detach(), torch.nn.functional.one_hot(tokens, V).to(soft)) and torch.equal(
        tokens[:, 0], first
    )
    law = made.law(ctx, tokens)
    assert torch.allclose(torch.stack(told, 1), law, atol=1e-5)
    f = torch.randn(V, generator=torch.Generator().manual_seed(0))
    (hard,) = torch.autograd.grad((law[:, -1].exp() * f).sum(), ctx_parameter(made), retain_graph=True)
    cut = made.relaxed(ctx, lambda k, log_q: choose(k, log_q) if k == K - 1 else choose(k, log_q).detach(), first)
    (got,) = torch.autograd.grad((cut[:, -1].float() * f).sum(), ctx_parameter(made))
    assert torch.allclose(got, hard, atol=1e-5) and hard.abs().max() > 1e-3


def ctx_parameter(made):
    return made.projection.down


@pytest.mark.parametrize("name", ["first-order-chain", "recurrent-chain", "gru-chain", "block-chain"])
def test_later_positions_feel_a_soft_token_as_a_mixture_of_embeddings(name):
    """A token that is half one word and half another is embedded half way between: the first-order chain's correction
    is then the mean of the two; every chain's moves when the mixture does."""
    made, ctx = head(name, 2), context(anchors=1)
    base = made.projection(ctx.hidden, 1)[:, 0]
    one, other = (made.step(ctx, base, made.start(ctx, base[:, None]), torch.tensor([v]))[0] for v in (1, 3))
    hard = torch.nn.functional.one_hot(torch.tensor([1]), V).double()
    told = made.step(ctx, base, made.start(ctx, base[:, None]), hard)[0]
    assert torch.allclose(told, one, atol=1e-12)
    mixed = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]], dtype=torch.float64)
    halfway = made.step(ctx, base, made.start(ctx, base[:, None]), mixed)[0]
    assert not torch.allclose(halfway, one) and not torch.allclose(halfway, other)
    assert name != "first-order-chain" or torch.allclose(halfway, (one + other) / 2)


@pytest.mark.parametrize("name", ["lattice-chain", "mixture"])
def test_a_head_that_reads_no_soft_tokens_says_so(name):
    with pytest.raises(NotImplementedError, match=f"{name} reads no soft tokens"):
        head(name, K).relaxed(context(), lambda k, log_q: log_q, torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize("what", TRUNK_KINDS)
def test_chunks_change_nothing(what, monkeypatch):
    made, ctx = head("block-chain", K), context()
    whole = trunk_policy(made, ctx, f"rloo-{what}", 4, trunk, Rng(0, torch.arange(3)))
    expected = gradient(whole.loss.sum(), made)
    monkeypatch.setattr(on_policy, "CHUNK_LOGITS", 1)
    parts = trunk_policy(made, ctx, f"rloo-{what}", 4, trunk, Rng(0, torch.arange(3)))
    assert torch.allclose(parts.value, whole.value) and torch.allclose(
        gradient(parts.loss.sum(), made), expected, atol=1e-6
    )


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="known are reinforce-accepted"):
        on_policy.check("rloo", 4)
    with pytest.raises(ValueError, match="samples 1 must be 2"):
        on_policy.check("rloo-kl", 1)


def test_blocks_are_drawn_from_the_law_that_the_gradient_is_taken_of():
    """Under autocast too: the draw is in fp32 as log q is, whose gradient would be another law's otherwise."""
    made, drawn, states = head("block-chain", K, dtype=torch.float32), [], torch.zeros(D)
    ctx, rng = context(torch.float32), Rng(0, torch.arange(3))

    def read(tokens):
        drawn.append(tokens)
        return states.expand(*tokens.shape, D)

    for lowered in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            trunk_policy(made, ctx, "rloo-overlap", 2000, read, rng)
    assert torch.equal(*drawn)
