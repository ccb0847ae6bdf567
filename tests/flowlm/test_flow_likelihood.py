"""Estimators against a law that is known exactly: six hands of two words, H = log 6."""

import itertools
import math

import pytest
import torch

from flowlm.likelihood import (
    Ancestral,
    Clock,
    FewStep,
    FromLogits,
    enumerated,
    fit_clock,
    fit_grid,
    importance,
    k_step,
    measure,
    ode,
    vlb,
)
from flowlm.likelihood.clock import lattice
from flowlm.likelihood.curve import Curve
from flowlm.likelihood.enumerated import of_draws
from flowlm.token_map import Known
from flowmap.codebook import OneHot
from flowmap.objectives.tokens import TokenStates, VariationalBound
from flowmap.path import CosinePath, LinearPath
from flowmap.rng import Rng
from tests.flowlm.test_token_map import N, V, build
from tests.flowmap.six_hands import ENTROPY, INDEPENDENT, TOKENS, WORDS, SixHands, hands

BESIDE = (0.5, -1.0, 0.5, -0.4)


def states(count):
    return TokenStates(hands(count)), Rng(1, torch.arange(count))


@pytest.fixture(scope="module")
def curve():
    return measure(SixHands(), TokenStates(hands(1200)), Rng(0, torch.arange(1200)), draws=60, end=200.0, cells=60)


@pytest.fixture(scope="module")
def clock(curve):
    return fit_clock(SixHands(), TokenStates(hands(1200)), Rng(5, torch.arange(1200)), curve)


# Where bounds look.


def test_a_clock_leaves_nothing_of_the_integral_out_and_weighs_it_right():
    """½∫_0^9 e^{−S} dS by 20,000 even u."""
    edges = torch.tensor([0.0, 0.1, 0.7, 2.0, 9.0], dtype=torch.float64)
    clock = Clock(edges, torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64))
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    snr, weight = clock.at(u)
    assert snr.min() > 0 and snr.max() <= 9 and (snr.diff() > 0).all()
    assert float((weight * (-snr).exp()).mean()) == pytest.approx((1 - math.exp(-9)) / 2, abs=1e-6)
    even = Clock.even(0.1, 9.0, 3)
    assert float(even.at(u)[1].mean()) == pytest.approx(4.5, rel=1e-6)
    with pytest.raises(ValueError, match="rise from 0"):
        Clock(edges[1:], torch.ones(3))


def test_times_are_even_inside_a_sequence_and_over_sequences():
    u = lattice(torch.full((1000,), 0.3, dtype=torch.float64), torch.arange(1000), 4)[:, 0]
    assert torch.equal((u * 4).long(), torch.arange(4).expand(1000, 4))
    gaps = u.flatten().sort().values.diff()
    assert gaps.max() < 4 / 4000  # independent ones leave gaps of about log(4000)/4000


@pytest.mark.parametrize("path", [LinearPath(), LinearPath(noise_scale=0.5), CosinePath(noise_scale=2.0)], ids=repr)
def test_a_state_is_noised_to_the_ratio_that_was_asked_for(path):
    from flowlm.likelihood.terms import snr_of, time_of

    snr = torch.tensor([0.0, 1e-3, 0.5, 40.0], dtype=torch.float64)
    t = time_of(path, snr)
    assert t[0] == 1 and torch.allclose((path.snr(t) / path.noise_scale**2)[1:], snr[1:])
    assert snr_of(path, float(t[2])) == pytest.approx(0.5)


# The bound in continuous time.


def test_the_bound_is_tight_at_the_posterior_within_its_error(clock):
    found = vlb(SixHands(), *states(6000), clock, calls=48)
    print(f"\nvlb: {2 * found.value:.4f} ± {2 * found.monte_carlo:.4f} nats, entropy {ENTROPY:.4f}")
    assert found.kind == "bound" and found.nfe <= 48 and found.monte_carlo < 0.005
    assert 2 * found.value == pytest.approx(ENTROPY, abs=0.02)


@pytest.mark.parametrize("rows, calls", [(120, 8), (120, 48), (12, 96)])
def test_its_error_is_what_other_noise_shows(clock, rows, calls):
    """Of many rows and calls: times that are even over all of them."""
    found = [vlb(SixHands(), TokenStates(hands(rows)), Rng(n, torch.arange(rows)), clock, calls) for n in range(60)]
    values = torch.tensor([one.value for one in found])
    told = (sum(one.monte_carlo**2 for one in found) / 60) ** 0.5
    assert 0.75 * float(values.std()) < told < 1.5 * float(values.std())
    assert all(part.shared == (rows > 100 and calls > 40) for part in found[0].parts[1:])


def test_a_second_look_is_fine_where_the_bound_is_made(curve):
    look = curve.look
    assert curve.edges[-1] <= look.edges[-1] and torch.equal(curve.edges[:2], look.edges[:2])
    shares = [one.force / one.force.sum() for one in (look, curve)]
    assert shares[1].max() < shares[0].max() / 2  # no cell has much of it
    assert float(curve.drift.sum()) == pytest.approx(float(look.drift.sum()), rel=0.05)
    there = look.edges[look.end()]
    assert curve.edges[curve.end() - 1] < there <= curve.edges[curve.end()] * (1 + 1e-9)


def test_a_network_call_buys_three_times_the_precision_of_uniform_times(clock):
    """Against one independent time a sample, even in t over [0.02, 1]; calls of both terms counted on both sides."""
    count, rounds, calls = 120, 150, 16
    even = VariationalBound(0.02, 1.0, "logistic")
    ours, theirs = [], []
    with torch.no_grad():
        for n in range(rounds):
            batch, rng = TokenStates(hands(count)), Rng(50 + n, torch.arange(count))
            ours.append(vlb(SixHands(), batch, rng, clock, calls, trusted=True).value)
            loss = even(SixHands(), batch, rng=rng, step=0)
            theirs.append(float(loss.sum / loss.count))
    spread = [float(torch.tensor(values).var()) * cost for values, cost in ((ours, calls), (theirs, 2))]
    print(f"\nvariance of a network call, uniform times over ours: {spread[1] / spread[0]:.2f}")
    assert spread[1] > 3 * spread[0], spread


def test_other_networks_have_larger_bounds(curve, clock):
    for theta in ((0.5, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, -0.4)):
        found = vlb(SixHands(theta), *states(1200), clock, calls=16)
        assert 2 * found.value > ENTROPY + 3 * 2 * found.monte_carlo


# In K steps.

PUBLISHED = {0: 4.76, 1: 3.92, 2: 3.53, 4: 3.16, 8: 2.87, 16: 2.68, 32: 2.57}
"""Perplexity a token of L_K at the posterior with the best grids; 2.449 is exact."""


@pytest.mark.parametrize("steps", PUBLISHED)
def test_the_k_step_bound_of_the_posterior_is_the_known_one(steps, curve):
    grid = fit_grid(curve, steps)
    found = k_step(SixHands(), *states(3000), grid, draws=8 if steps < 16 else 4)
    print(f"\nK = {steps}: {math.exp(found.value):.3f} a token")
    assert grid[0] == 0 and len(grid) == steps + 1 and found.kind == "bound"
    tolerance = 0.01 + 4 * found.monte_carlo * PUBLISHED[steps]
    assert math.exp(found.value) == pytest.approx(PUBLISHED[steps], abs=tolerance)
    if steps == 0:
        assert 2 * found.value == pytest.approx(INDEPENDENT, abs=1e-9)


def test_the_grid_is_the_best_of_its_mesh(monkeypatch):
    import sys

    monkeypatch.setattr(sys.modules["flowlm.likelihood.k_step"], "MESH", 9)
    edges = torch.cat([torch.zeros(1), torch.logspace(-2, 2, 12)]).double()
    middle = edges[1:]
    apart, unread = 2 / (1 + middle), 3 * (-middle / 4).exp()
    made = Curve(edges, apart, apart, apart, unread, 1.0)
    read_off = sys.modules["flowlm.likelihood.k_step"]._read_off
    mesh = torch.cat([torch.zeros(1), torch.logspace(-2, 2, 9)]).double()
    m, c = (read_off(made.centers, values, mesh) for values in (apart, unread))

    def cost(picked):
        steps = zip((0, *picked), picked, strict=False)
        return sum(float((mesh[b] - mesh[a]) * m[a] / 2) for a, b in steps) + float(c[picked[-1]])

    for steps in (1, 2, 3):
        best = min(itertools.combinations(range(1, 10), steps), key=cost)
        assert torch.allclose(fit_grid(made, steps), mesh[[0, *best]])


OWN = {1: 2.456, 2: 2.200, 4: 1.991, 8: 1.868}


@pytest.mark.parametrize("steps", OWN)
def test_the_steps_own_law_lies_below_its_bound_and_above_the_entropy(steps, curve):
    grid = fit_grid(curve, steps)
    own = enumerated(Ancestral(SixHands(), grid), TOKENS, seed=3, draws=4000)
    bound = k_step(SixHands(), *states(1200), grid, draws=8)
    print(f"\nK = {steps}: own law {2 * own.value:.3f}, bound {2 * bound.value:.3f} nats")
    assert ENTROPY < 2 * own.value < 2 * (bound.value - 4 * bound.monte_carlo)
    assert 2 * own.value == pytest.approx(OWN[steps], abs=0.04)  # the grid of the known number is not quite this one


# By the flow.


@pytest.mark.parametrize("snr, expected", [(1.0, 2.608), (4.0, 1.954), (9.0, 1.795)])
def test_the_flow_agrees_with_the_known_values_and_tends_to_the_entropy(snr, expected):
    found = ode(SixHands(), *states(300), snr, steps=6)
    print(f"\node from S = {snr:g}: {2 * found.value:.4f} ± {2 * found.monte_carlo:.4f} nats")
    assert found.kind == "estimate" and abs(found.details["step_doubling"]) < 2e-3
    assert 2 * found.value == pytest.approx(expected, abs=4 * 2 * found.monte_carlo)


def test_the_flow_agrees_with_the_bound():
    found = ode(SixHands(), *states(60), 20.0, steps=8)
    assert 2 * found.value == pytest.approx(ENTROPY, abs=0.01) and 2 * found.monte_carlo < 0.01


def test_hutchinsons_trace_is_that_of_the_jacobian_within_its_error():
    exact, guessed = (ode(SixHands(), *states(120), 9.0, steps=4, draws=2, probes=p) for p in (0, 4))
    assert exact.details["trace_stderr"] == 0 < guessed.details["trace_stderr"]
    assert guessed.value == pytest.approx(exact.value, abs=4 * guessed.details["trace_stderr"])
    assert "hutchinson" in guessed.details["trace"]


def test_heun_needs_more_steps_and_finds_the_same():
    coarse = ode(SixHands(), *states(60), 9.0, steps=4, method="heun")
    fine, rk4 = (ode(SixHands(), *states(60), 9.0, steps=n, method=m) for n, m in ((24, "heun"), (8, "rk4")))
    assert abs(fine.details["step_doubling"]) < abs(coarse.details["step_doubling"]) / 4
    assert fine.value == pytest.approx(rk4.value, abs=1e-3)


class HalfDetached(SixHands):
    """The posterior, half of its dependence on x_t hidden from the gradient, as by a first pass under no_grad."""

    def logits(self, x, t, s, context=None):
        p = self.probabilities(x, t, t)
        return ((p + p.detach()) / 2 + 1e-30).log()


def test_half_a_jacobian_falls_below_the_entropy_and_is_refused():
    """It tends to H/2 = 0.896."""
    with pytest.raises(ValueError, match="detach"):
        ode(HalfDetached(), *states(60), 20.0, steps=4)
    cheat = ode(HalfDetached(), *states(120), 20.0, steps=6, trusted=True)
    print(f"\nhalf the Jacobian: {2 * cheat.value:.3f} ± {2 * cheat.monte_carlo:.3f} nats, entropy {ENTROPY:.4f}")
    assert 2 * cheat.value == pytest.approx(ENTROPY / 2, abs=4 * 2 * cheat.monte_carlo)
    assert 2 * cheat.value < ENTROPY - 8 * 2 * cheat.monte_carlo


# What is carried between steps.


class Carries(SixHands):
    """The posterior given x_t and what the last call was shown too: another noise of the same text."""

    seen = None

    def posterior(self, y, r):
        z = r[:, None] / self.nu**2 * (y @ self.members.T)
        both = z + self.seen if self.seen is not None and self.seen.shape == z.shape else z
        self.seen = z.detach()
        return both.softmax(-1) @ self.members


class TwoPasses(SixHands):
    """Self-conditioning as it may be: an estimate from this x_t, used on this x_t."""

    passes = 2

    def logits(self, x, t, s, context=None):
        first = super().logits(x, t, t)
        return (super().logits(x, t, t) + first) / 2


@pytest.mark.parametrize("estimator", ["vlb", "k-step", "ode", "sampler", "importance", "measure"])
def test_a_network_that_remembers_is_refused_in_one_line(estimator, clock):
    batch, rng = states(60)
    asked = {
        "vlb": lambda m: vlb(m, batch, rng, clock),
        "k-step": lambda m: k_step(m, batch, rng, clock.edges[::5]),
        "ode": lambda m: ode(m, batch, rng, 4.0),
        "sampler": lambda m: enumerated(FewStep(m), TOKENS, 0),
        "importance": lambda m: importance(FewStep(m), batch, rng, 0.7, 9.0),
        "measure": lambda m: measure(m, batch, rng),
    }[estimator]
    with pytest.raises(ValueError, match="carried between steps") as caught:
        asked(Carries())
    assert "\n" not in str(caught.value)


def test_two_passes_inside_the_step_are_a_network_like_any_other(clock):
    batch, rng = states(240)
    twice, once = (vlb(m, batch, rng, clock, 8) for m in (TwoPasses(), SixHands()))
    assert twice.value == pytest.approx(once.value) and twice.nfe == 2 * once.nfe


# The sampler's own law.


def test_one_step_of_the_exact_map_spends_the_law_exactly():
    found = enumerated(FewStep(SixHands(), 1), TOKENS, seed=0, draws=20_000)
    assert found.kind == "bound" and 2 * found.value == pytest.approx(ENTROPY, abs=4 * 2 * found.monte_carlo + 1e-4)


def test_noise_from_near_the_text_finds_what_noise_from_anywhere_does():
    law, (batch, rng) = FewStep(SixHands(BESIDE), 2), states(6)
    found = importance(law, batch, rng, inflation=0.8, snr=9.0, draws=8192)
    plain = enumerated(law, TOKENS, seed=0, draws=8000)
    error = math.hypot(found.monte_carlo, plain.monte_carlo)
    print(f"\nimportance {found.details}, plain {plain.value:.4f} ± {plain.monte_carlo:.4f}")
    assert error < 0.05 and found.details["jackknife"] == pytest.approx(plain.value, abs=4 * error)
    falls = [found.details[f"bound_at_{n}"] for n in (1, 4, 16, 64)]
    assert sorted(falls, reverse=True) == falls and falls[-1] > plain.value
    assert 1 < found.details["effective_sample_size"] < 8192


def test_large_states_have_no_importance_bound():
    batch = TokenStates(hands(6).repeat(1, 30))
    with pytest.raises(ValueError, match="600 unknown coordinates at once"):
        importance(FewStep(SixHands()), batch, Rng(0, torch.arange(6)), 0.7, 9.0)


def test_the_jackknife_is_that_of_a_loop():
    log_p = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = of_draws(log_p, torch.ones(3, dtype=torch.float64), 7, shared=False)
    whole = -log_p.exp().mean(0).log()
    for i in range(7):
        rest = -torch.cat([log_p[:i], log_p[i + 1 :]]).exp().mean(0).log()
        assert torch.allclose(found.parts[0].repeats[i], 7 * whole - 6 * rest)
    assert torch.allclose(found.nats, whole)


# What any user may rely on.


def test_chunks_and_slices_change_nothing(monkeypatch, clock):
    model, (batch, rng) = SixHands(BESIDE), states(50)
    grid = clock.edges[::7]
    score = {
        "vlb": lambda s, r: vlb(model, s, r, clock, 8).nats,
        "k-step": lambda s, r: k_step(model, s, r, grid).nats,
        "ode": lambda s, r: ode(model, s, r, 4.0, steps=2).nats,
        "importance": lambda s, r: importance(FewStep(model, 2), s, r, 0.7, 9.0, draws=4).nats,
    }
    whole = {name: one(batch, rng) for name, one in score.items()}
    monkeypatch.setattr("flowlm.likelihood.terms.NUMBERS", 1000)
    for name, one in score.items():
        assert torch.allclose(one(batch, rng), whole[name], rtol=1e-9), name
        rows = torch.arange(20, 50)
        assert torch.allclose(one(batch[rows], Rng(1, rows)), whole[name][20:], rtol=1e-9), name


def test_any_function_of_state_and_time_has_a_likelihood(clock):
    oracle, (batch, rng) = SixHands(), states(60)
    function = FromLogits(lambda x, t: oracle.logits(x, t, t), OneHot(len(WORDS)).double(), LinearPath())
    assert vlb(function, batch, rng, clock, 8).value == vlb(oracle, batch, rng, clock, 8).value


@pytest.mark.parametrize("codebook", ["one-hot", "embedding", "bits"])
def test_what_is_known_costs_nothing_and_is_no_noise(codebook):
    model = build(codebook).map
    tokens = torch.randint(V, (6, N), generator=torch.Generator().manual_seed(0))
    rng, even = Rng(0, torch.arange(6)), Clock.even(0.01, 100.0, 20)

    def scores(at):
        batch = TokenStates(tokens, Known(tokens, at), ~at)
        return {
            "vlb": vlb(model, batch, rng, even, 8),
            "k-step": k_step(model, batch, rng, even.edges[::10]),
            "ode": ode(model, batch, rng, 4.0, steps=1),
            "importance": importance(FewStep(model, 2), batch, rng, 0.7, 4.0, draws=4),
        }

    for name, found in scores(torch.ones(6, N, dtype=torch.bool)).items():
        assert found.nats.abs().max() < 1e-4, name
    for name, found in scores(torch.arange(N).expand(6, N) != 2).items():
        assert (found.tokens == 1).all() and (found.nats.abs() > 1e-3).all(), name


def test_what_cannot_be_is_refused(curve, clock):
    batch, rng = states(60)
    for wrong, what in (
        (lambda: vlb(SixHands(), batch, rng, clock, calls=5), "6 at least"),
        (lambda: k_step(SixHands(), batch, rng, torch.tensor([1.0, 2.0])), "rises from 0"),
        (lambda: ode(SixHands(), batch, rng, 4.0, method="euler"), "known are"),
        (lambda: fit_grid(curve, 10_000), "10000 steps"),
        (lambda: enumerated(FewStep(SixHands()), TOKENS, 0, draws=10), "10 draws"),
        (lambda: measure(SixHands(), batch, rng, draws=2), "takes 160"),
        (lambda: Clock.even(1.0, 0.5, 3), "0 < first < end"),
    ):
        with pytest.raises(ValueError, match=what):
            wrong()
