"""Verification leaves the target's law as it is, shown on whole blocks; wrong rules are caught."""

import pytest
import torch
from scipy import stats

from flowmap.warp import inverse_cdf
from mtp.decoding.rules import RULES, Verdict, agreement, block_rule, token_rule

V, K, N = 5, 3, 1_000_000


def tables(seed):
    """Laws of x_1, x_2|x_1, …, x_{K+1}|x_≤K, each (V^{k−1}, V), peaked."""
    g = torch.Generator().manual_seed(seed)
    return [(1.5 * torch.randn(V**k, V, generator=g, dtype=torch.float64)).log_softmax(-1) for k in range(K + 1)]


P, Q = tables(0), tables(1)
"""Target, and a draft far from it."""


def code(tokens):
    """Prefixes as numbers, (N,)."""
    found = torch.zeros(len(tokens), dtype=torch.long)
    for column in tokens.T:
        found = found * V + column
    return found


def drafted(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(n, 0, dtype=torch.long)
    log_p, log_q = [], []
    for k in range(K + 1):
        here = code(tokens)
        log_p.append(P[k][here])
        if k < K:
            log_q.append(Q[k][here])
            drawn = inverse_cdf(log_q[-1].exp(), torch.rand(n, generator=g, dtype=torch.float64))
            tokens = torch.cat([tokens, drawn[:, None]], 1)
    return torch.stack(log_p, 1), torch.stack(log_q, 1), tokens, torch.rand(n, K, generator=g, dtype=torch.float64), g


def pvalue(rule, n=N, seed=0):
    """χ² of whole blocks of K+1 tokens: what is kept, the token after it, and the target's own tokens up to the end."""
    log_p, log_q, tokens, uniform, g = drafted(n, seed)
    verdict = rule(log_p, log_q, tokens, uniform)
    drawn = inverse_cdf(verdict.law, torch.rand(n, generator=g, dtype=torch.float64))
    out = torch.zeros(n, 0, dtype=torch.long)
    for k in range(K + 1):
        own = inverse_cdf(P[k][code(out)].exp(), torch.rand(n, generator=g, dtype=torch.float64))
        token = torch.where(verdict.kept == k, drawn, own)
        if k < K:
            token = torch.where(k < verdict.kept, tokens[:, k], token)
        out = torch.cat([out, token[:, None]], 1)
    expected = torch.zeros(1, dtype=torch.float64)
    for k in range(K + 1):
        expected = (expected[:, None] + P[k]).flatten()
    observed = torch.bincount(code(out), minlength=V ** (K + 1)).double()
    kept = expected.exp() * n > 5
    return stats.chisquare(
        observed[kept], expected.exp()[kept] * observed[kept].sum() / expected.exp()[kept].sum()
    ).pvalue


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("seed", [0, 1])
def test_blocks_follow_the_targets_law(name, seed):
    assert pvalue(RULES[name], seed=seed) > 1e-3


def target_for_residual(rule):
    """p where (P p − q)₊ should stand."""

    def wrong(log_p, log_q, tokens, uniform):
        kept = rule(log_p, log_q, tokens, uniform).kept
        return Verdict(kept, log_p[torch.arange(len(kept)), kept].exp())

    return wrong


def one_uniform(rule):
    return lambda log_p, log_q, tokens, uniform: rule(log_p, log_q, tokens, uniform[:, :1].expand_as(uniform))


def unweighted_residual(log_p, log_q, tokens, uniform):
    """The token rule's residual under the block rule's acceptance."""
    kept = block_rule(log_p, log_q, tokens, uniform).kept
    rows = torch.arange(len(kept))
    rest = (log_p[rows, kept].exp() - log_q[rows, kept.clamp_max(K - 1)].exp()).clamp_min(0)
    return Verdict(kept, torch.where((kept == K)[:, None], log_p[rows, kept].exp(), rest))


@pytest.mark.parametrize(
    "wrong",
    [
        target_for_residual(token_rule), target_for_residual(block_rule), one_uniform(token_rule),
        one_uniform(block_rule), unweighted_residual,
    ],
)  # fmt: skip
def test_wrong_rules_are_caught(wrong):
    assert pvalue(wrong) < 1e-10


def ended(log_q, tokens, how):
    """Drafts that end of their own will: (what is submitted, the law of what would be). before: at places where q is
    spread, and after some words. drawn: before a word that q makes less than a fifth likely."""
    if how == "before":
        spread = log_q.exp().amax(-1) < 0.5
        spread[:, 0] = False  # one law for all rows
        spread[:, 1:] |= tokens[:, :-1] == 2
        return (~spread).long().cumprod(1).bool(), log_q
    likely = log_q > torch.tensor(0.2).log()
    submitted = likely.gather(-1, tokens[..., None])[..., 0].long().cumprod(1).bool()
    return submitted, log_q.masked_fill(~likely, -torch.inf)


def rule_on_ended(rule, how):
    def judged(log_p, log_q, tokens, uniform):
        submitted, law = ended(log_q, tokens, how)
        if how == "before":
            law = law.masked_fill(~submitted[..., None], -torch.inf)
        return rule(log_p, law, tokens, uniform, submitted)

    return judged


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("how", ["before", "drawn"])
def test_a_draft_may_end_of_its_own_will(name, how):
    """Places ended before a token is drawn have q = 0; a token dropped for its value leaves the others' q as it is."""
    _, log_q, tokens, _, _ = drafted(20_000)
    submitted = ended(log_q, tokens, how)[0]
    assert all(float((submitted.sum(1) == n).double().mean()) > 0.05 for n in range(1, K + 1))
    assert pvalue(rule_on_ended(RULES[name], how)) > 1e-3


def target_after_a_dropped_token(rule):
    """p itself after a token that was dropped for its value."""

    def wrong(log_p, log_q, tokens, uniform):
        submitted, _ = ended(log_q, tokens, "drawn")
        return rule(log_p, log_q.masked_fill(~submitted[..., None], -torch.inf), tokens, uniform, submitted)

    return wrong


def residual_after_an_early_end(rule):
    """(p − q)₊ where nothing was drawn from q."""

    def wrong(log_p, log_q, tokens, uniform):
        submitted, law = ended(log_q, tokens, "before")
        return rule(log_p, law, tokens, uniform, submitted)

    return wrong


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("wrong", [target_after_a_dropped_token, residual_after_an_early_end])
def test_wrong_ends_are_caught(name, wrong):
    assert pvalue(wrong(RULES[name])) < 1e-10


def test_a_draft_of_nothing_leaves_the_targets_law():
    log_p, log_q, tokens, uniform, _ = drafted(100)
    none = torch.zeros_like(tokens, dtype=torch.bool)
    for rule in RULES.values():
        got = rule(log_p, torch.full_like(log_q, -torch.inf), tokens, uniform, none)
        assert (got.kept == 0).all() and torch.allclose(got.law, log_p[:, 0].exp())


def test_the_block_rule_keeps_more():
    case = drafted(N)[:4]
    token, block = (RULES[name](*case).kept.double() for name in ("token", "block"))
    error = (token.var() / N + block.var() / N) ** 0.5
    assert block.mean() - token.mean() > 10 * error


def loop_block_rule(log_p, log_q, tokens, uniform):
    """As the paper writes it, row by row."""
    kept, laws = [], []
    for p, q, x, eta in zip(log_p.exp(), log_q.exp(), tokens.tolist(), uniform.tolist(), strict=True):
        share, shares, best = 1.0, [1.0], 0
        for i, token in enumerate(x):
            share = min(1.0, share * float(p[i, token] / q[i, token]))
            shares.append(share)
            if i + 1 < K:
                excess = float((share * p[i + 1] - q[i + 1]).clamp_min(0).sum())
                stands = 1.0 if excess == 0 and share == 1 else excess / (excess + 1 - share)
            else:
                stands = share
            if eta[i] < stands:
                best = i + 1
        kept.append(best)
        laws.append(p[K] if best == K else (shares[best] * p[best] - q[best]).clamp_min(0))
    return torch.tensor(kept), torch.stack(laws)


def test_the_block_rule_is_the_papers_loop():
    case = drafted(300, seed=5)[:4]
    kept, law = loop_block_rule(*case)
    got = block_rule(*case)
    assert torch.equal(got.kept, kept) and torch.allclose(got.law, law, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_equal_laws_keep_everything(name):
    log_p, _, tokens, uniform, _ = drafted(2000)
    assert (RULES[name](log_p, log_p[:, :-1], tokens, uniform).kept == K).all()


@pytest.mark.parametrize("name", RULES)
def test_greedy_keeps_what_greedy_would_write(name):
    """At temperature 0 both laws are one-hot: no uniform matters."""
    log_p, log_q, _, uniform, _ = drafted(2000)
    best = torch.stack([log_p[:, k].argmax(-1) for k in range(K)], 1)
    guess = torch.stack([log_q[:, k].argmax(-1) for k in range(K)], 1)
    sharp = [torch.full_like(x, -torch.inf).scatter(-1, x.argmax(-1, keepdim=True), 0.0) for x in (log_p, log_q)]
    got = RULES[name](*sharp, guess, uniform)
    assert torch.equal(got.kept, (best == guess).long().cumprod(1).sum(1))
    rows = torch.arange(len(guess))
    assert torch.equal(got.law.argmax(-1), log_p[rows, got.kept].argmax(-1)) and (got.law.sum(-1) == 1).all()


def test_agreement_counts_the_common_beginning():
    tokens = torch.tensor([[1, 2, 0], [1, 2, 0], [0, 0, 0]])
    picks = torch.tensor([[1, 2, 0, 1], [1, 0, 0, 1], [1, 0, 0, 1]])
    assert agreement(picks, tokens).tolist() == [3, 1, 0]


@pytest.mark.parametrize("noise", ["gumbel", "inverse-cdf"])
def test_shared_noise_agrees_as_often_as_its_law_says(noise):
    """Gumbel: Σ_i 1/Σ_j max(p_j/p_i, q_j/q_i), and never below (1−TV)/(1+TV); inverse CDF: the overlap of slices."""
    p, q = P[1][0], Q[1][2]
    g, n = torch.Generator().manual_seed(0), 400_000
    if noise == "gumbel":
        gumbel = -(-torch.rand(n, V, generator=g, dtype=torch.float64).log()).log()
        a, b = (p + gumbel).argmax(-1), (q + gumbel).argmax(-1)
        ratio = torch.maximum(p.exp()[None] / p.exp()[:, None], q.exp()[None] / q.exp()[:, None])
        expected = float((1 / ratio.sum(1)).sum())
        variation = float((p.exp() - q.exp()).abs().sum() / 2)
        assert expected >= (1 - variation) / (1 + variation)
    else:
        uniform = torch.rand(n, generator=g, dtype=torch.float64)
        a, b = (inverse_cdf(law.exp().expand(n, V), uniform) for law in (p, q))
        high, low = (
            torch.minimum(p.exp().cumsum(0), q.exp().cumsum(0)),
            torch.maximum(p.exp().cumsum(0) - p.exp(), q.exp().cumsum(0) - q.exp()),
        )
        expected = float((high - low).clamp_min(0).sum())
    found = float((a == b).double().mean())
    assert found == pytest.approx(expected, abs=4 * (expected * (1 - expected) / n) ** 0.5)
