"""Likelihood by blocks: each bounded behind the clean text before it, the sum a bound of the window; at the posterior tight,
without a step and without a state the autoregressive model of the same weights; and leaks are caught."""

import math
from functools import cache

import pytest
import torch

from eval.certificate import of_score
from flowlm import FlowLM, FlowLMConfig, Known, blocks
from flowlm.blocks import Blocks
from flowlm.likelihood import (
    Clock,
    FewStep,
    FromZero,
    enumerated,
    fit_clock,
    fit_grid,
    fit_inflation,
    importance,
    k_step,
    measure,
    ode,
    vlb,
)
from flowlm.likelihood.enumerated import of_draws
from flowlm.likelihood.terms import errors, num_parts, of_parts
from flowmap.objectives.tokens import CrossEntropy, TokenStates
from flowmap.rng import Rng
from tests.flowlm.block_law import BlockOracle
from tests.flowlm.windows_law import every_window

V, N = 3, 4
EVERY = every_window(V, N)
SIZES = (1, 2, 4)


def in_blocks(tokens, size, at=None):
    at = torch.zeros_like(tokens, dtype=torch.bool) if at is None else at
    levels = (torch.arange(N) // size).expand_as(tokens)
    return TokenStates(tokens, Blocks(tokens, torch.full((len(tokens),), size), Known(tokens, at)), ~at, levels)


def addressed(states, seed=0):
    return Rng(seed, torch.arange(states.size))


def network(wild=0.3, **more):
    torch.manual_seed(1)
    backbone = {"width": 24, "depth": 2, "heads": 2, "time_scale": 10.0, **more}
    config = FlowLMConfig(
        vocab_size=V, length=N, codebook="embedding", state_size=3, block_lengths=list(SIZES), noise="block",
        t_min=0.02, backbone=backbone,
    )  # fmt: skip
    model = FlowLM(config).eval()
    for parameter in model.parameters():
        if wild and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=wild)
    return model.map


@cache
def oracle():
    p = torch.rand(V**N, generator=torch.Generator().manual_seed(3)).double().pow(4)
    p[::5] = 0  # some windows never happen
    return BlockOracle(p, V, N)


@cache
def drawn(size, count, seed=0):
    """Windows of the law, each as often as it should be."""
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    order = torch.rand(count, generator=torch.Generator().manual_seed(seed)).argsort()
    return in_blocks(EVERY[torch.searchsorted(oracle().p.cumsum(0), u)[order]], size)


@cache
def fitted(size):
    states = drawn(size, 1200)
    return measure(oracle(), states, addressed(states, 5), draws=60, end=100.0)


# What a part is.


def test_one_call_scores_every_block_at_its_own_level_as_a_call_for_each_does():
    """Against the block alone behind a prefix, with no second copy of anything: a loop over blocks."""
    model, states = network(), in_blocks(EVERY[::9], 2)
    rng = addressed(states)
    snr = torch.rand(states.size, 2, generator=torch.Generator().manual_seed(0)).double() * 5
    apart, unread = errors(model, states, snr, rng, "here")
    assert apart.shape == unread.shape == (states.size, 2) and num_parts(states) == 2
    clean = model.codebook.encode(states.tokens)
    eps = model.path.draw_noise(rng, "here", clean)
    for b, first in enumerate((0, 2)):
        here, t = slice(first, first + 2), 1 / (1 + snr[:, b].sqrt())
        x_t = ((1 - t)[:, None, None] * clean[:, here] + t[:, None, None] * eps[:, here]).float()
        known = Known(states.tokens[:, here], torch.zeros(states.size, 2, dtype=torch.bool))
        behind = Blocks(states.tokens[:, :first], states.context.size, known, first)
        with torch.no_grad():
            p = model.logits(x_t, t.float(), t.float(), behind).softmax(-1)
        wrong = (clean[:, here] - p @ model.codebook.codes()).square().flatten(1).sum(1)
        torch.testing.assert_close(apart[:, b].float(), wrong, rtol=1e-4, atol=1e-4)
        own = -p.gather(-1, states.tokens[:, here, None])[..., 0].log().sum(1)
        torch.testing.assert_close(unread[:, b].float(), own, rtol=1e-4, atol=1e-4)


def test_parts_are_sums_of_their_tokens():
    each = torch.arange(8.0).view(2, 4)
    states = in_blocks(EVERY[:2], 2)
    assert of_parts(states, each).tolist() == [[1.0, 5.0], [9.0, 13.0]]
    assert of_parts(TokenStates(EVERY[:2]), each).tolist() == [[6.0], [22.0]]


# At the exact posterior of a law of windows.


@pytest.mark.parametrize("size", SIZES)
def test_at_the_posterior_the_bound_of_blocks_is_tight_and_that_of_k_steps_above(size):
    states = drawn(size, 2000)
    training = drawn(size, 400)
    clock = fit_clock(oracle(), training, addressed(training, 5), fitted(size))
    found = vlb(oracle(), states, addressed(states), clock, calls=48 * size)
    print(f"\nB = {size}: {N * found.value:.4f} ± {N * found.monte_carlo:.4f} nats, entropy {oracle().entropy():.4f}")
    told = float(oracle().nats(states.tokens).mean())
    assert N * found.value == pytest.approx(told, abs=0.02)
    before = math.inf
    for steps in (0, 1, 4):
        bound = k_step(oracle(), states, addressed(states), fit_grid(fitted(size), steps), draws=4)
        assert told < N * bound.value + 4 * N * bound.monte_carlo + 1e-9
        if size > 1:  # a token alone has nothing to be refined for: every step is a loss
            assert N * bound.value < before - 0.01
        before = N * bound.value


@pytest.mark.parametrize("size", SIZES)
def test_without_a_step_a_block_costs_its_tokens_one_by_one(size):
    states = drawn(size, 200)
    found = k_step(oracle(), states, addressed(states), torch.zeros(1), draws=2)
    torch.testing.assert_close(found.nats, oracle().cross_entropy(states.tokens, size), rtol=0, atol=1e-6)
    if size == 1:
        torch.testing.assert_close(found.nats, oracle().nats(states.tokens), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2])
def test_the_flow_of_blocks_agrees(size):
    states = drawn(size, 100)
    found = ode(oracle(), states, addressed(states), 40.0, steps=8)
    told = float(oracle().nats(states.tokens).mean())
    assert N * found.value == pytest.approx(told, abs=0.02 + 4 * N * found.monte_carlo)


# Block length 1, no step, no state: the autoregressive model of the same weights.


@torch.no_grad()
def chain_rule(model, tokens):
    """−Σ log p(x^l | x^{<l}): a call of the bare backbone for every place, which reads the codes of the tokens before it from
    left to right and, behind them, one vector of zeros at time 1."""
    total = torch.zeros(len(tokens), dtype=torch.float64)
    for place in range(tokens.shape[1]):
        codes = model.codebook.codes()[tokens[:, :place]]
        x = torch.cat([codes, codes.new_zeros(len(tokens), 1, codes.shape[-1])], 1)
        one = torch.ones(len(tokens))
        clean = torch.arange(place + 1).expand(len(tokens), -1) < place
        causal = torch.ones(place + 1, place + 1, dtype=torch.bool).tril()
        last = model.network(x, one, one, mask=causal, clean=clean)[:, -1]
        total -= last.double().log_softmax(-1)[torch.arange(len(tokens)), tokens[:, place]]
    return total


@pytest.mark.parametrize("positions", ["rope", "learned", "rope+learned"])
def test_blocks_of_one_without_step_or_state_are_the_autoregressive_likelihood_of_the_same_weights(positions):
    model, states = network(positions=positions), in_blocks(EVERY, 1)
    found = k_step(FromZero(model), states, addressed(states), torch.zeros(1, dtype=torch.float64))
    expected = chain_rule(model, EVERY)
    assert found.kind == "exact" and found.monte_carlo == 0
    torch.testing.assert_close(found.nats, expected, rtol=0, atol=1e-4)
    assert float((-found.nats).exp().sum()) == pytest.approx(1, abs=1e-5)
    noisy = k_step(model, states, addressed(states), torch.zeros(1, dtype=torch.float64))
    assert noisy.kind == "bound" and float((noisy.nats - expected).abs().max()) > 0.05
    longer = k_step(FromZero(model), in_blocks(EVERY, 2), addressed(states), torch.zeros(1, dtype=torch.float64))
    assert float((longer.nats - expected).abs().max()) > 0.05
    assert float((-longer.nats).exp().sum()) == pytest.approx(1, abs=1e-5)  # another law, a whole one too


# Certificates.


def trained(model, steps=150):
    texts = EVERY[torch.tensor([5, 16, 40, 77])].repeat(16, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    objective = CrossEntropy(t_min=0.02)
    for step in range(steps):
        batch = in_blocks(texts, SIZES[step % 3])
        loss = objective(model, batch, rng=Rng(1, torch.arange(batch.size), step), step=step)
        (loss.sum / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@cache
def made(kind):
    return {"random": network, "trained": lambda: trained(network(0)), "oracle": oracle}[kind]()


def scorers(model, training, strings, calls):
    """name → score of all strings. calls: times the least number."""
    curve = measure(model, training, addressed(training, 5), draws=16, end=None if model is not oracle() else 100.0)
    clock, rng = fit_clock(model, training, addressed(training, 5), curve), addressed(strings, 9)
    return {
        "vlb": vlb(model, strings, rng, clock, calls=64 * calls, trusted=True),
        "k-step 0": k_step(model, strings, rng, fit_grid(curve, 0), 16 * calls, True),
        "k-step 1": k_step(model, strings, rng, fit_grid(curve, 1), 16 * calls, True),
        "k-step 4": k_step(model, strings, rng, fit_grid(curve, 4), 8 * calls, True),
    }


TEXTS = [5, 16, 40, 77]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["random", "trained", "oracle"])
def test_all_windows_together_have_no_more_than_all_the_probability(kind, size):
    training = drawn(size, 200) if kind != "trained" else in_blocks(EVERY[TEXTS].repeat(50, 1), size)
    possible = torch.nonzero(oracle().p)[:, 0] if kind == "oracle" else torch.arange(len(EVERY))
    for name, found in scorers(
        made(kind), training, in_blocks(EVERY[possible], size), 16 if kind == "oracle" else 2
    ).items():
        got = of_score(found)
        print(f"\n{name}, {kind}, B = {size}: Σ exp(−score) = {got.total:.4f} ± {got.stderr:.4f}")
        assert got.holds, (name, got)
        if kind == "trained" and name == "vlb":  # of use: the texts are worth less than even chances
            assert float(found.nats[TEXTS].mean()) < 0.8 * N * math.log(V)
        if kind == "oracle" and name == "vlb":
            assert got.total == pytest.approx(1, abs=0.05 + 3 * got.stderr)


@pytest.mark.parametrize("size", SIZES)
def test_a_network_that_sees_its_own_clean_block_breaks_it(monkeypatch, size):
    monkeypatch.setattr(blocks, "clean_blocks_before", lambda q, k: ~q.clean & k.clean & (k.block <= q.block))
    model, training = trained(network(0)), in_blocks(EVERY[TEXTS].repeat(50, 1), size)
    for name, found in scorers(model, training, in_blocks(EVERY, size), 1).items():
        got = of_score(found)
        assert not got.holds, (name, got)


@pytest.mark.parametrize("kind", ["random", "trained"])
def test_noise_from_near_each_block_spends_no_more(kind):
    model, strings = made(kind), in_blocks(EVERY, 2)
    law = FewStep(model, 2)
    rho = fit_inflation(law, in_blocks(EVERY[TEXTS], 2), Rng(3, torch.arange(4)), 9.0)
    got = of_score(importance(law, strings, addressed(strings), rho, 9.0, draws=128))
    assert got.holds and got.total > 0.5


def test_a_product_of_means_is_taken_apart_block_by_block():
    """P̂ = Π_b mean_z p(x^b | z_b), not mean_z Π_b: against a loop."""
    log_p = torch.randn(60, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = of_draws(log_p, torch.full((3,), 4.0, dtype=torch.float64), 60, shared=False)
    assert torch.allclose(found.nats, -log_p.exp().mean(0).log().sum(1))
    model, strings = made("trained"), in_blocks(EVERY[:6], 2)
    law, count = FewStep(model, 1), 3000
    near = importance(law, strings, addressed(strings), 1.0, 1e-9, draws=count, steps=1)  # from the prior, almost
    rows = torch.arange(6).repeat_interleave(count)
    z = torch.randn(len(rows), N, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        log_p = model.logits(z, torch.ones(len(rows)), torch.zeros(len(rows)), strings.context[rows]).log_softmax(-1)
    each = log_p.gather(-1, strings.tokens[rows, :, None])[..., 0].view(6, count, 2, 2).sum(3).double()
    plain = -(each.logsumexp(1) - math.log(count)).sum(1)
    assert float((near.nats - plain).abs().max()) < 0.25


# What any user may rely on.


def test_chunks_and_slices_change_nothing(monkeypatch):
    model, states = made("random"), in_blocks(EVERY[::4], 2)
    clock, rng = Clock.even(0.01, 50.0, 10), addressed(states)
    score = {
        "vlb": lambda s, r: vlb(model, s, r, clock, 8).nats,
        "k-step": lambda s, r: k_step(model, s, r, clock.edges[::4]).nats,
        "ode": lambda s, r: ode(model, s, r, 4.0, steps=1).nats,
        "importance": lambda s, r: importance(FewStep(model, 2), s, r, 0.7, 9.0, draws=4).nats,
    }
    whole = {name: one(states, rng) for name, one in score.items()}
    monkeypatch.setattr("flowlm.likelihood.terms.NUMBERS", 600)
    rows = torch.arange(10, 20)
    for name, one in score.items():
        torch.testing.assert_close(one(states, rng), whole[name], rtol=1e-4, atol=1e-4, msg=name)
        torch.testing.assert_close(one(states[rows], rng[rows]), whole[name][10:20], rtol=1e-4, atol=1e-4, msg=name)


def test_a_known_beginning_costs_nothing_and_one_block_is_the_window():
    model, at = made("random"), torch.arange(N).expand(len(EVERY), N) < 3
    clock = Clock.even(0.01, 50.0, 10)
    told = in_blocks(EVERY, 2, at)
    found = vlb(model, told, addressed(told), clock, 64)
    assert (found.tokens == 1).all()
    for prompt in EVERY[:, :3].unique(dim=0)[::7]:
        rows = (EVERY[:, :3] == prompt).all(1)
        assert float((-found.nats[rows]).exp().sum()) < 1.05
    one, plain = in_blocks(EVERY[:9], N), TokenStates(EVERY[:9])
    scores = [vlb(model, states, addressed(states), clock, 8).nats for states in (one, plain)]
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-4)


def test_answers_in_blocks_share_no_noise():
    with pytest.raises(ValueError, match="by importance"):
        enumerated(FewStep(made("random")), EVERY[:3], 0, 64, in_blocks(EVERY[:1], 2).context)
