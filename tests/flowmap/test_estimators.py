import itertools

import pytest
import torch
from scipy import stats

from flowmap.estimators import (
    ARMS,
    ESTIMATORS,
    RLOO,
    ControlNetwork,
    DisARM,
    Estimate,
    Exact,
    GumbelRao,
    GumbelSoftmax,
    Rebar,
    Reinforce,
    ReinMax,
    Relax,
    STGumbel,
    StickARMS,
    StraightThrough,
    relaxed,
)
from flowmap.estimators.antithetic import debias, dirichlet_copula
from flowmap.estimators.base import argmax_onehot, gumbels
from flowmap.estimators.exact import outcomes
from flowmap.estimators.relaxed import gumbels_given
from flowmap.rng import Rng

REPEATS = 5000
BINARY, TERNARY = (3, 2), (2, 3)


def normal(name, *shape):
    return Rng(7).normal(name, *shape, dtype=torch.float64)


def two_laws(L, V):
    """Logits of two batch elements, (2, L, V)."""
    return normal("logits", 2, L, V)


def function(kind, L, V):
    """f: (..., L, V) → (...), of all variables together."""
    w, A = normal("w", L * V), normal("A", L * V, L * V)
    return {
        "linear": lambda x: 1 + x.flatten(-2) @ w,
        "quadratic": lambda x: 1 + ((x.flatten(-2) @ A) * x.flatten(-2)).sum(-1),
        "cubic": lambda x: 1 + (x.flatten(-2) @ A).pow(3).sum(-1) / 10,
        "exponential": lambda x: (x.flatten(-2) @ w).exp(),
        "network": lambda x: 1 + torch.tanh(x.flatten(-2) @ A) @ w,
        "step": lambda x: 1 + ((x.flatten(-2) @ A) > 0).to(x) @ w,
    }[kind]


def with_mean(f):
    """A baseline removes the mean of f, and has nothing to remove where there is none."""
    return lambda x: 5 + f(x)


def build(name, L, V):
    if name != "relax":
        return ESTIMATORS[name]()
    network = ControlNetwork(L, V, Rng(3))
    with torch.no_grad():
        network.outer += 0.1 * Rng(4).normal("outer", len(network.outer))  # a control that is not zero
    return Relax(network, Rebar())


def repeats(estimator, logits, f, n, seed=1, num=REPEATS):
    """Independent estimates of one gradient, (num, *logits.shape), made as one batch."""
    return estimator.estimate(logits.expand(num, *logits.shape), f, n, Rng(seed)).gradient


def agrees(estimates, exact):
    """Whether the mean of (num, batch, L, V) is `exact`: within 3 standard errors along the exact gradient, within 4
    in the worst of the 12 components (in 1 of 1300 tests by chance), and by the joint χ² of each batch element."""
    num = len(estimates)
    error = estimates - exact
    along = (error * exact).flatten(1).sum(1)
    standard = error.mean(0).abs() / (error.std(0) / num**0.5)
    free = error[..., :-1].flatten(2)  # the last category of a variable is minus the sum of the others
    chi2 = [num * m @ torch.linalg.solve(e.T.cov(), m) for e, m in zip(free.unbind(1), free.mean(0), strict=True)]
    return (
        along.mean().abs() < 3 * along.std() / num**0.5
        and standard.max() < 4
        and all(stats.chi2.sf(float(x), free.shape[-1]) > 1e-3 for x in chi2)
    )


def variance(estimates):
    return float(estimates.var(0).sum())


UNBIASED = [name for name, kind in ESTIMATORS.items() if kind.unbiased and name != "exact"]
CASES = [
    (name, shape)
    for name, shape in itertools.product(UNBIASED, (BINARY, TERNARY))
    if shape == BINARY or name not in ("disarm", "arms")
]


@pytest.mark.parametrize("kind", ["linear", "quadratic", "exponential", "network"])
@pytest.mark.parametrize("name, shape", CASES)
def test_an_unbiased_estimator_agrees_with_enumeration(name, shape, kind):
    logits, f = two_laws(*shape), function(kind, *shape)
    exact = Exact().estimate(logits, f).gradient
    assert agrees(repeats(build(name, *shape), logits, f, 4), exact)


@pytest.mark.parametrize("name, shape", [case for case in CASES if case[0] not in ("rebar", "relax")])
def test_f_without_a_gradient_is_enough_for_score_functions(name, shape):
    logits, steps = two_laws(*shape), function("step", *shape)

    def f(x):
        assert not x.requires_grad
        return torch.from_numpy(steps(x).numpy().copy())

    estimator = build(name, *shape)
    assert not estimator.needs_gradient_of_f
    assert agrees(repeats(estimator, logits, f, 4), Exact().estimate(logits, steps).gradient)


class OwnBaseline:
    """REINFORCE, the baseline of a draw the mean over all draws, itself among them: (n − 1)/n of the gradient."""

    def estimate(self, logits, f, num_samples, rng):
        right = RLOO().estimate(logits, f, num_samples, rng)
        return Estimate(right.value, right.gradient * (num_samples - 1) / num_samples, num_samples)


@pytest.mark.parametrize("kind", ["linear", "quadratic", "exponential", "network"])
@pytest.mark.parametrize("shape", [BINARY, TERNARY])
def test_a_wrong_baseline_is_found_out(shape, kind):
    logits, f = two_laws(*shape), function(kind, *shape)
    assert not agrees(repeats(OwnBaseline(), logits, f, 4), Exact().estimate(logits, f).gradient)


@pytest.mark.parametrize("name", [name for name, kind in ESTIMATORS.items() if not kind.unbiased])
def test_a_biased_estimator_says_so(name):
    logits, f = two_laws(*TERNARY), function("exponential", *TERNARY)
    assert not agrees(repeats(ESTIMATORS[name](), logits, f, 1), Exact().estimate(logits, f).gradient)


def test_exact_is_the_derivative_of_the_sum_over_outcomes():
    logits, f = two_laws(2, 3).requires_grad_(), function("network", 2, 3)
    pi, total = logits.softmax(-1), 0
    for i, j in itertools.product(range(3), repeat=2):
        total = total + pi[:, 0, i] * pi[:, 1, j] * f(torch.eye(3, dtype=torch.float64)[[i, j]])
    estimate = Exact(chunk=4).estimate(logits, f)
    assert torch.allclose(estimate.value, total.detach())
    assert torch.allclose(estimate.gradient, torch.autograd.grad(total.sum(), logits)[0])
    assert estimate.num_evaluations == 9


# --- relaxed estimators ---


def expected(estimator, logits, f, monkeypatch):
    """The estimator's mean over all draws D: each outcome taken once, f weighted by the outcome's probability."""
    D, probability = next(outcomes(logits, limit=100, chunk=100))
    monkeypatch.setattr(relaxed, "draw", lambda rng, log_pi, num, at: D)
    return estimator.estimate(logits, lambda x: len(D) * probability * f(x), len(D), Rng(0)).gradient


SHAPES = [(1, 2), (1, 5), (2, 3), (3, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["linear", "quadratic"])
def test_reinmax_is_exact_on_linear_and_quadratic_f(shape, kind, monkeypatch):
    logits, f = two_laws(*shape), function(kind, *shape)
    exact = Exact().estimate(logits, f).gradient
    assert torch.allclose(expected(ReinMax(), logits, f, monkeypatch), exact, atol=1e-12)
    assert not torch.allclose(expected(ReinMax(tau=1.5), logits, f, monkeypatch), exact, atol=1e-3)


def biases(f, shape, monkeypatch):
    """Of ReinMax and straight-through, over the exact gradient, root mean square over 200 laws."""
    logits = normal("laws", 200, *shape)
    exact = Exact().estimate(logits, f).gradient
    return [
        float((expected(e, logits, f, monkeypatch) - exact).norm() / exact.norm())
        for e in (ReinMax(), StraightThrough())
    ]


MILD = {
    "exponential": lambda x, s: (s * x).exp(),
    "softplus": lambda x, s: (1 + (s * x).exp()).log(),
    "logarithm": lambda x, s: (1 + (s * x + 0.3).square()).log(),
    "tanh": lambda x, s: (s * x + 0.3).tanh(),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", MILD)
def test_reinmax_is_less_biased_than_straight_through_and_of_second_order(shape, kind, monkeypatch):
    """Functions s·w·D of mild curvature s. The error over the gradient is that of the terms left out: s for
    straight-through, s² for ReinMax, so that half the s halves the one and quarters the other."""
    w = normal("w", shape[0] * shape[1])
    (fine, st_fine), (coarse, st_coarse) = (
        biases(lambda x, s=s: MILD[kind](x.flatten(-2) @ w, s), shape, monkeypatch) for s in (0.05, 0.1)
    )
    assert fine < 0.5 * st_fine and coarse < 0.5 * st_coarse
    assert fine / coarse < 0.7 * st_fine / st_coarse


def test_reinmax_can_be_more_biased_than_straight_through(monkeypatch):
    """What second order does not promise: f = b³ of one binary b. ReinMax has (f'(0) + f'(1))/2 = 3/2 for
    f(1) − f(0) = 1 whatever p is; straight-through has (1 − p) f'(0) + p f'(1) = 3p, exact at p = 1/3."""
    logits = torch.tensor([[1 / 3, 2 / 3]], dtype=torch.float64).log()

    def cube(x):
        return x[..., 0, 0] ** 3

    exact = Exact().estimate(logits, cube).gradient
    assert torch.allclose(expected(StraightThrough(), logits, cube, monkeypatch), exact)
    assert torch.allclose(expected(ReinMax(), logits, cube, monkeypatch), 1.5 * exact)


def test_straight_through_is_exact_on_linear_f_without_variance():
    logits, f = two_laws(*TERNARY), function("linear", *TERNARY)
    one_draw = StraightThrough().estimate(logits, f, 1, Rng(0)).gradient
    assert torch.allclose(one_draw, Exact().estimate(logits, f).gradient)


@pytest.mark.parametrize("tau", [0.3, 1.0])
def test_gumbel_softmax_differentiates_its_own_relaxed_value(tau):
    logits, f, step = two_laws(*TERNARY), function("network", *TERNARY), 1e-5
    direction = normal("direction", *logits.shape)
    low, at, high = (GumbelSoftmax(tau).estimate(logits + h * direction, f, 8, Rng(0)) for h in (-step, 0, step))
    slope = (high.value - low.value).sum() / (2 * step)
    assert torch.allclose(slope, (at.gradient * direction).sum(), rtol=1e-6)


def test_linear_f_cannot_tell_st_gumbel_from_gumbel_softmax():
    logits, f = two_laws(*TERNARY), function("linear", *TERNARY)
    st, soft = (kind(0.7).estimate(logits, f, 8, Rng(0)).gradient for kind in (STGumbel, GumbelSoftmax))
    assert torch.allclose(st, soft)


@pytest.mark.parametrize("tau", [0.3, 1.0])
@pytest.mark.parametrize("kind", ["quadratic", "network"])
def test_gumbel_rao_keeps_st_gumbels_mean_and_has_less_variance(tau, kind):
    logits, f = two_laws(*TERNARY), function(kind, *TERNARY)
    st = repeats(STGumbel(tau), logits, f, 1)
    one, many = (repeats(GumbelRao(tau, k), logits, f, 1, seed=2) for k in (1, 16))
    for rao in (one, many):
        error = (st.var(0) + rao.var(0)).div(REPEATS).sqrt()
        assert ((st.mean(0) - rao.mean(0)).abs() < 4 * error).all()
    assert variance(many) < 0.9 * variance(st)
    assert abs(variance(one) / variance(st) - 1) < 0.1  # one Gumbel given the draw is ST-Gumbel


def test_gumbels_given_their_argmax_have_it_and_the_gumbel_law():
    log_pi = two_laws(1, 4)[0].log_softmax(-1)
    D = argmax_onehot(gumbels(Rng(0), "a", log_pi, 20_000))
    noise = -Rng(0).uniform("b", 20_000, 1, 4, dtype=torch.float64).log()
    z = gumbels_given(D, log_pi, noise)
    assert torch.equal(argmax_onehot(z), D)
    for column in (z - log_pi).flatten(0, 1).T:
        assert stats.kstest(column, "gumbel_r").pvalue > 1e-3


# --- variances, as published ---


@pytest.mark.parametrize("shape", [BINARY, TERNARY])
@pytest.mark.parametrize("kind", ["quadratic", "network"])
def test_control_variates_and_baselines_have_less_variance_than_reinforce(shape, kind):
    logits, f = two_laws(*shape), with_mean(function(kind, *shape))
    plain_1, plain_4 = (variance(repeats(Reinforce(), logits, f, n)) for n in (1, 4))
    for estimator in (RLOO(), StickARMS()):
        assert variance(repeats(estimator, logits, f, 4)) < 0.9 * plain_4
    for estimator in (Rebar(), Relax(ControlNetwork(*shape, Rng(3)), Rebar())):
        estimator.fit(logits, f, 32, Rng(1), steps=60, learning_rate=0.05)
        assert variance(repeats(estimator, logits, f, 1)) < 0.9 * plain_1  # per draw, as they are published


@pytest.mark.parametrize("kind", ["linear", "quadratic", "exponential", "network"])
@pytest.mark.parametrize("L", [1, 3])
def test_antithetic_binary_draws_have_less_variance_than_independent_ones(kind, L):
    logits, f = two_laws(L, 2), with_mean(function(kind, L, 2))
    rloo = {n: variance(repeats(RLOO(), logits, f, n)) for n in (2, 8)}
    disarm = {n: variance(repeats(DisARM(), logits, f, n)) for n in (2, 8)}
    assert disarm[2] < rloo[2]
    arms = variance(repeats(ARMS(), logits, f, 8))
    assert arms < rloo[8]
    assert L > 1 or arms < disarm[8]  # of several variables pairs can be the better ones
    assert disarm[8] < variance(repeats(Reinforce(), logits, f, 8))


def test_disarm_and_rloo_have_their_closed_form_variances():
    """One binary variable, f(1) − f(0) = Δ, q = min(p, 1 − p), in one of the two equal and opposite components:
    E ĝ = p(1−p)Δ; E ĝ² is Δ²/4 · 2q(1−q) for RLOO-2, and Δ²/4 · 2q · (1−q)² for DisARM."""
    p = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64)
    logits = torch.stack([p, 1 - p], -1).log()[:, None]
    q, delta = torch.minimum(p, 1 - p), 3.0
    squares = {RLOO: 2 * q * (1 - q), DisARM: 2 * q * (1 - q) ** 2}
    for kind, square in squares.items():
        estimates = repeats(kind(), logits, lambda x: delta * x[..., 0, 0], 2, num=20_000)[..., 0, 0]
        want = delta**2 * (square / 4 - (p * (1 - p)) ** 2)
        fourth = (estimates - estimates.mean(0)).pow(4).mean(0)
        error = (fourth - want**2).clamp_min(0).div(20_000).sqrt()
        assert ((estimates.var(0) - want).abs() < 4 * error + 1e-12).all()


# --- antithetic draws ---


@pytest.mark.parametrize("n", [2, 3, 8])
def test_the_dirichlet_copula_keeps_the_marginal_and_has_its_correlation(n):
    p = torch.tensor([[0.02, 0.3, 0.5, 0.7, 0.98]], dtype=torch.float64)
    num = 100_000
    b = dirichlet_copula(Rng(0), p, 1 - p, num, n)
    sigma = (p * (1 - p)).sqrt()
    assert ((b[0].mean(0) - p).abs() < 4 * sigma / num**0.5).all()
    product = (b[0] - p) * (b[-1] - p) / sigma**2
    rho = 1 - 1 / debias(p, 1 - p, n)
    assert ((product.mean(0) - rho).abs() < 4 * product.std(0) / num**0.5 + 1e-9).all()
    assert (rho < 0).all() and (rho >= -1 / (n - 1) - 1e-9).all()  # no n variables are pairwise more negative


def test_arms_is_disarm_at_two_draws_and_sticks_are_arms_at_two_categories():
    logits, f = two_laws(*BINARY), function("network", *BINARY)
    of_two = [kind().estimate(logits, f, 2, Rng(0)).gradient for kind in (DisARM, ARMS, StickARMS)]
    assert torch.equal(of_two[0], of_two[1]) and torch.equal(of_two[1], of_two[2])
    of_six = [kind().estimate(logits, f, 6, Rng(0)).gradient for kind in (ARMS, StickARMS)]
    assert torch.equal(*of_six)


def test_disarm_is_its_published_formula():
    """½ (f(b) − f(b̃)) (−1)^b̃ [b ≠ b̃] σ(|α|), α the logit of b = 1, which is category 0 here."""
    logits, f = two_laws(*BINARY), function("network", *BINARY)
    seen = []
    estimate = DisARM().estimate(logits, lambda x: seen.append(x) or f(x), 2, Rng(5))
    (b, other), (value, value_other) = seen[0][..., 0], f(seen[0])
    alpha = logits[..., 0] - logits[..., 1]
    want = (value - value_other)[:, None] / 2 * (-1) ** other * (b != other) * alpha.abs().sigmoid()
    assert torch.allclose(estimate.gradient, torch.stack([want, -want], -1))


# --- control variates ---


def test_rebars_two_paths_are_the_derivatives_of_the_two_relaxed_draws():
    """z through log π + G at fixed G, and z̃ through `gumbels_given` at the noise that makes z̃ = z."""
    logits = two_laws(*TERNARY).requires_grad_()
    c = function("network", *TERNARY)
    log_pi = logits.log_softmax(-1)
    z = gumbels(Rng(0), "gumbel", log_pi.detach(), 1)
    D, top = argmax_onehot(z), (-z.amax(-1, keepdim=True)).exp()
    noise = torch.where(D > 0, top, log_pi.detach().exp() * ((-z).exp() - top))
    z_tilde = gumbels_given(D, log_pi, noise)
    assert torch.allclose(z_tilde, z)
    pathwise = c(log_pi + (z - log_pi).detach()).sum() - c(z_tilde).sum()
    want = torch.autograd.grad(pathwise, logits)[0] + (function("quadratic", *TERNARY)(D) - c(z))[..., None, None] * (
        D - log_pi.exp()
    )
    got = Relax(c).estimate(logits, function("quadratic", *TERNARY), 1, Rng(0)).gradient
    assert torch.allclose(got, want[0].detach())


def test_without_a_control_rebar_is_reinforce():
    logits, f = two_laws(*TERNARY), function("network", *TERNARY)
    rebar, reinforce = (e.estimate(logits, f, 8, Rng(0)).gradient for e in (Rebar(eta=0.0), Reinforce()))
    assert torch.allclose(rebar, reinforce)


@pytest.mark.parametrize("black_box", [False, True])
def test_a_fitted_control_has_less_variance_and_is_still_unbiased(black_box):
    logits, f = two_laws(*TERNARY), function("step" if black_box else "network", *TERNARY)
    estimator = Relax(ControlNetwork(*TERNARY, Rng(3)), None if black_box else Rebar())
    before = variance(repeats(estimator, logits, f, 1))
    estimator.fit(logits, f, 32, Rng(1), steps=60, learning_rate=0.05)
    after = repeats(estimator, logits, f, 1)
    assert variance(after) < 0.8 * before
    assert agrees(after, Exact().estimate(logits, f).gradient)
    assert all(p.grad is None for p in estimator.parameters())


def test_the_variance_loss_is_the_second_moment_of_one_draw():
    logits, f = two_laws(*TERNARY), function("network", *TERNARY)
    loss = Rebar().variance_loss(logits[0].expand(REPEATS, 2, 3), f, 1, Rng(1), name="gumbel")
    one_draw = repeats(Rebar(), logits[0], f, 1)
    assert torch.allclose(loss, one_draw.square().sum((-2, -1)).mean())


# --- what all of them keep ---

ALL = [(name, BINARY) for name in ESTIMATORS] + [("stick-arms", TERNARY)]


@pytest.mark.parametrize("name, shape", ALL)
def test_the_surrogate_carries_the_gradient_and_trains_f(name, shape):
    logits = two_laws(*shape).requires_grad_()
    w = normal("weights", *shape).requires_grad_()

    def f(x):
        return (x * w).sum((-2, -1)).square()

    estimate = build(name, *shape).estimate(logits, f, 4, Rng(0))
    surrogate = estimate.surrogate(logits)
    surrogate.backward()
    assert torch.equal(logits.grad, estimate.gradient)
    assert torch.equal(surrogate, estimate.value.sum())
    assert estimate.value.shape == (2,) and estimate.gradient.shape == logits.shape
    assert not estimate.gradient.requires_grad
    assert w.grad.abs().sum() > 0
    if name == "exact":
        D, probability = next(outcomes(logits, 100, 100))
        total = (probability * f(D)).sum()
        assert torch.allclose(w.grad, torch.autograd.grad(total, w)[0])


def test_a_value_that_depends_on_the_logits_directly_is_trained_through_both():
    """E_π[log π(D)], minus the entropy: exact enumeration and its surrogate give the derivative of the closed form."""
    logits = two_laws(2, 3).requires_grad_()
    log_pi = logits.log_softmax(-1)
    surrogate = Exact().estimate(logits, lambda x: (x * log_pi).sum((-2, -1))).surrogate(logits)
    entropy = -(log_pi.exp() * log_pi).sum()
    for got, want in zip(
        (surrogate, *torch.autograd.grad(surrogate, logits, retain_graph=True)),
        (-entropy, *torch.autograd.grad(-entropy, logits)),
        strict=True,
    ):
        assert torch.allclose(got, want)


@pytest.mark.parametrize("name, shape", ALL)
def test_draws_come_from_the_rng_alone(name, shape):
    logits, f = two_laws(*shape), function("network", *shape)
    state = torch.get_rng_state()
    estimator = build(name, *shape)
    one, same, other = (estimator.estimate(logits, f, 4, Rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.gradient, same.gradient) and torch.equal(one.value, same.value)
    assert name == "exact" or not torch.equal(one.gradient, other.gradient)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name, shape", ALL)
def test_a_slice_of_a_batch_gets_its_part_of_the_whole_batchs_estimate(name, shape):
    logits, f = two_laws(*shape).repeat(3, 1, 1), function("network", *shape)
    estimator = build(name, *shape)
    whole = estimator.estimate(logits, f, 4, Rng(1, torch.arange(6)))
    part = estimator.estimate(logits[2:5], f, 4, Rng(1, torch.arange(2, 5)))
    assert torch.allclose(part.gradient, whole.gradient[2:5]) and torch.allclose(part.value, whole.value[2:5])


@pytest.mark.parametrize("name, shape", ALL)
def test_single_precision_is_double_precision_rounded(name, shape):
    logits, f = two_laws(*shape), function("network", *shape)
    estimator = build(name, *shape)
    double = estimator.estimate(logits, f, 8, Rng(0))
    single = estimator.estimate(logits.float(), lambda x: f(x.double()).float(), 8, Rng(0))
    assert single.gradient.dtype == torch.float32
    assert torch.allclose(single.gradient.double(), double.gradient, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name not in ("disarm", "arms")])
@pytest.mark.parametrize("masked", [0, 1, 3])
def test_a_masked_category_is_never_drawn_and_has_no_gradient(name, masked):
    logits = two_laws(2, 4)
    logits[..., masked] = -torch.inf
    logits.requires_grad_()
    f = function("network", 2, 4)
    estimate = build(name, 2, 4).estimate(logits, f, 8, Rng(0))
    surrogate = estimate.surrogate(logits)
    surrogate.backward()
    assert surrogate.isfinite() and logits.grad.isfinite().all()
    assert (logits.grad[..., masked] == 0).all() and logits.grad.abs().sum() > 0


@pytest.mark.parametrize("name, shape", ALL)
def test_a_certain_draw_has_no_gradient(name, shape):
    logits = torch.zeros(1, *shape, dtype=torch.float64)
    logits[..., 1] = 200.0
    estimate = build(name, *shape).estimate(logits, function("network", *shape), 4, Rng(0))
    assert (estimate.gradient.abs() < 1e-12).all()


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
@pytest.mark.parametrize("name, shape", ALL)
def test_any_batch_dimensions_and_the_number_of_evaluations_is_counted(name, shape, batch):
    logits, f, seen = normal("logits", *batch, *shape), function("network", *shape), []
    estimate = build(name, *shape).estimate(logits, lambda x: seen.append(len(x)) or f(x), 4, Rng(0))
    assert estimate.value.shape == batch and estimate.gradient.shape == (*batch, *shape)
    assert sum(seen) == estimate.num_evaluations
    sums = estimate.gradient.sum(-1)
    assert torch.allclose(sums, torch.zeros_like(sums), atol=1e-12)  # softmax does not see a shift of the logits


@pytest.mark.parametrize("name, shape", ALL)
def test_what_does_not_fit_is_one_clear_error(name, shape):
    logits, f = two_laws(*shape), function("network", *shape)
    estimator = build(name, *shape)
    with pytest.raises(ValueError, match=r"not floats \(\*batch, variables, categories\)"):
        estimator.estimate(logits[0, 0], f, 4, Rng(0))
    with pytest.raises(ValueError, match="not floats"):
        estimator.estimate(logits.long(), f, 4, Rng(0))
    with pytest.raises(ValueError, match="num_samples = 0"):
        estimator.estimate(logits, f, 0, Rng(0))
    with pytest.raises(ValueError, match="one value per draw and batch element"):
        estimator.estimate(logits, lambda x: f(x).sum(), 4, Rng(0))
    if estimator.needs_gradient_of_f:
        with pytest.raises(ValueError, match="carries no gradient"):
            estimator.estimate(logits, function("step", *shape), 4, Rng(0))


def test_limits_of_support_and_draws_are_named():
    f = function("network", 2, 3)
    for kind in (DisARM, ARMS):
        with pytest.raises(ValueError, match="binary variables, not 3 categories; StickARMS"):
            kind().estimate(two_laws(2, 3), f, 4, Rng(0))
    with pytest.raises(ValueError, match="num_samples = 3 has to be even"):
        DisARM().estimate(two_laws(2, 2), f, 3, Rng(0))
    for kind in (RLOO, DisARM, ARMS, StickARMS):
        with pytest.raises(ValueError, match="needs at least 2"):
            kind().estimate(two_laws(2, 2), f, 1, Rng(0))
    with pytest.raises(ValueError, match=r"64\^3 = 262144 outcomes are more than limit = 100000"):
        Exact().estimate(torch.zeros(3, 64), f)


def test_the_names_are_the_tables_keys():
    assert all(kind.name == name for name, kind in ESTIMATORS.items())
    assert len(ESTIMATORS) == 13
