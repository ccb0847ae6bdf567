import copy
import math

import pytest
import torch
from torch import nn

from flowmap.backbone import Backbone, BackboneConfig, Context
from flowmap.codebook import Embedding, OneHot
from flowmap.maps import FlowMap
from flowmap.objectives.tokens import (
    TOKEN_OBJECTIVES,
    CrossEntropy,
    EulerianKL,
    LagrangianKL,
    ProgressiveKL,
    TokenStates,
    VariationalBound,
)
from flowmap.objectives.tokens.base import NoisedTokens, cross_entropy
from flowmap.objectives.tokens.differential import logit_derivative
from flowmap.path import CosinePath, LinearPath, expand
from flowmap.rng import Rng
from flowmap.times import Uniform
from tests.flowmap.six_hands import ENTROPY, INDEPENDENT, TOKENS, WORDS, SixHands, exact_flow, hands

BATCH, ROUNDS = 300, 6
BESIDE = (0.5, -2.0, 0.5, -0.4)
INTEGRATION = 2e-5
"""What RK4 with 24 steps leaves of a gradient that is zero at the exact map."""


def run(objective, model, n=0, count=BATCH, teacher=None):
    return objective(model, TokenStates(hands(count)), teacher=teacher, rng=Rng(1, torch.arange(count), n), step=0)


def gradients(objective, model, rounds=ROUNDS, count=BATCH):
    """(rounds, 4): the mean gradient of independent batches with respect to the map's perturbation."""
    found = []
    for n in range(rounds):
        loss = run(objective, model, n, count)
        found.append(torch.autograd.grad(loss.sum / loss.count, model.theta)[0])
    return torch.stack(found)


def deviations(found):
    return found.mean(0) / (found.std(0) / len(found) ** 0.5).clamp_min(INTEGRATION)


def states(count, t, seed=0):
    """Noised hands, and their time."""
    noise = torch.randn(count, 2, len(WORDS), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    t = torch.full((count,), t, dtype=torch.float64)
    return LinearPath().noise(OneHot(len(WORDS)).double().encode(hands(count)), noise, t), t


# The oracle itself.


def test_the_posterior_of_the_six_hands_is_that_of_bayes():
    x, t = states(30, 0.6)
    codes = nn.functional.one_hot(TOKENS, len(WORDS)).double()
    density = torch.distributions.Normal(0.4 * codes, 0.6).log_prob(x[:, None]).sum((-2, -1))
    expected = torch.einsum("bh,hnv->bnv", density.softmax(-1), codes)
    assert torch.allclose(SixHands().probabilities(x, t, t), expected)


@pytest.mark.parametrize("t, s", [(1.0, 0.4), (1.0, 0.05), (0.6, 0.2)])
def test_the_exact_map_heads_for_a_point_of_the_simplex_that_the_oracle_knows(t, s):
    """g_{t→s} = (X_{t→s} − (s/t)x_t)/(1 − s/t), by an adaptive solver."""
    x, at = states(60, t)
    g = (exact_flow(x, t, s) - s / t * x) / (1 - s / t)
    assert g.min() > -1e-9 and torch.allclose(g.sum(-1), torch.ones_like(g[..., 0]))
    found = SixHands().probabilities(x, at, torch.full_like(at, s))
    assert (found - g).abs().max() < 3e-3 and (found - g).abs().mean() < 2e-5


@pytest.mark.parametrize("t, u, s", [(1.0, 0.5, 0.2), (0.8, 0.3, 0.1), (1.0, 0.6, 0.0)])
def test_two_jumps_mix_with_the_semigroup_weights(t, u, s):
    oracle, (x, at) = SixHands(), states(100, t)
    a = s * (t - u) / (u * (t - s))
    middle, end = torch.full_like(at, u), torch.full_like(at, s)
    mixed = a * oracle.probabilities(x, at, middle) + (1 - a) * oracle.probabilities(exact_flow(x, t, u), middle, end)
    assert torch.allclose(oracle.probabilities(x, at, end), mixed, atol=3e-3)
    assert not torch.allclose(oracle.probabilities(x, at, end), mixed + 0.05 * (x > 0), atol=3e-3)


def test_the_derivatives_of_the_exact_map_solve_both_identities():
    oracle, (x, t) = SixHands(steps=32), states(100, 0.9)
    s = torch.linspace(0.2, 0.8, 100, dtype=torch.float64)
    local = oracle.probabilities(x, t, t)
    z, delta = logit_derivative(oracle, (x, t, s), (oracle.velocity(x, t, t), 1.0, 0.0))
    p, k = z.softmax(-1), expand(t * (t - s) / s, x)
    assert torch.allclose(p * (1 + k * delta), local, atol=1e-4)  # Eulerian
    z, delta = logit_derivative(oracle, (x, t, s), (None, 0.0, 1.0))
    landed = oracle.path.jump(x, p, t, s)
    c = expand(s * (t - s) / t, x)
    assert torch.allclose(p * (1 - c * delta), oracle.probabilities(landed, s, s), atol=1e-4)  # Lagrangian
    assert (k * p * delta).abs().max() > 0.1 and (c * p * delta).abs().max() > 0.1


# Every objective is stationary at it, and nowhere near.

STATIONARY = {
    "cross-entropy": CrossEntropy(),
    "vlb": VariationalBound(0.1),
    "vlb, logistic": VariationalBound(0.1, 1.0, "logistic"),
    "vlb, read of a quarter": VariationalBound(0.1, reading=0.25),
    "vlb, cross-entropy added": VariationalBound(0.1, cross_entropy=1.0),
    "kl-psd": ProgressiveKL(0.0),
    "kl-psd at a half, the pair (1, 0) often": ProgressiveKL(0.0, gamma=0.5, boundary=0.5),
    "kl-psd, most on the diagonal": ProgressiveKL(0.75),
    "kl-psd, weighted": ProgressiveKL(0.0, power=0.5, floor=1e-2),
    "esd, log": EulerianKL(0.0, Uniform(0.1, 1.0), form="log", clamp=1e-2),
    "esd, linear": EulerianKL(0.0, Uniform(0.1, 1.0), form="linear"),
    "lsd, log, away from the data": LagrangianKL(0.0, Uniform(0.4, 1.0), form="log", clamp=1e-8),
    "lsd, linear": LagrangianKL(0.0, Uniform(0.05, 1.0), form="linear"),
}


@pytest.mark.parametrize("name", STATIONARY)
def test_the_exact_map_is_a_stationary_point_and_its_neighbour_is_not(name):
    objective = STATIONARY[name]
    noisy = getattr(objective, "diagonal", 1.0) > 0  # data is in the gradient, not targets alone
    count, rounds = (8 * BATCH, 8) if noisy else (BATCH, ROUNDS)
    at_truth = deviations(gradients(objective, SixHands(), rounds, count))
    assert at_truth.abs().max() < 4.5, at_truth
    beside = deviations(gradients(objective, SixHands(BESIDE), rounds, count))
    assert beside.abs().max() > 6, beside


def test_the_divergence_is_zero_at_the_exact_map_alone():
    for objective in (ProgressiveKL(0.0), EulerianKL(0.0, Uniform(0.1, 1.0)), LagrangianKL(0.0)):
        for model, low, high in ((SixHands(), -1e-9, 1e-6), (SixHands(BESIDE), 0.01, 1.0)):
            total, count = run(objective, model).metrics["few_step_kl"]
            assert low < total / count < high


def test_the_log_form_of_the_lagrangian_target_misses_the_exact_map_near_the_data():
    """p_{s→s}/p_{t→s} is e^{−O(1/s²)} for a token that the mean over the way still holds likely: no clamp is small
    enough, and 1 − cδ rounds. The linear form has no ratio in it."""
    near = Uniform(0.05, 1.0)
    for clamp in (1e-2, 1e-8):
        total, count = run(LagrangianKL(0.0, near, form="log", clamp=clamp), SixHands()).metrics["few_step_kl"]
        assert total / count > 0.01
    total, count = run(LagrangianKL(0.0, near, form="linear"), SixHands()).metrics["few_step_kl"]
    assert total / count < 1e-5


# Likelihoods.


@torch.no_grad()
def per_token(objective, model, part=None, rounds=8, count=6000, first=0):
    """Mean over independent batches in nats a token, and its standard error."""
    found = []
    for n in range(first, first + rounds):
        loss = run(objective, model, n, count)
        total, tokens = (loss.sum, loss.count) if part is None else loss.metrics[part]
        found.append(float(total / tokens))
    found = torch.tensor(found)
    return float(found.mean()), float(found.std(correction=min(1, rounds - 1)) / rounds**0.5)


TIGHT = VariationalBound(0.05, 1.0, "logistic", center=2.0, scale=1.5)


def test_the_bound_is_tight_at_the_posterior():
    value, error = per_token(TIGHT, SixHands(), rounds=16, count=12_000)
    bound, error = 2 * value, 2 * error
    assert error < 0.01 and bound > ENTROPY - 2 * error
    assert bound == pytest.approx(ENTROPY, abs=0.02)


@pytest.mark.parametrize(
    "objective",
    [VariationalBound(), VariationalBound(0.4), VariationalBound(t_max=0.5)],
    ids=["log-snr", "t_min = 0.4", "t_max = 0.5"],
)
def test_other_laws_and_ranges_bound_too_and_a_short_range_is_paid_for(objective):
    value, error = per_token(objective, SixHands())
    assert 2 * value > ENTROPY - 3 * 2 * error
    if objective.t_min > 0.1 or objective.t_max < 0.9:
        assert 2 * value > ENTROPY + 0.1
    else:
        assert 2 * value == pytest.approx(ENTROPY, abs=3 * 2 * error)


def test_a_share_of_the_samples_stands_for_what_reading_costs_all():
    (all_, error), (some, wider) = (
        per_token(VariationalBound(0.4, reading=share), SixHands(), part="reading", rounds=16) for share in (1.0, 0.25)
    )
    assert all_ > 0.1 and error < wider < 0.02  # at t = 0.4 there is something to read, and fewer say what
    assert some == pytest.approx(all_, abs=4 * (error**2 + wider**2) ** 0.5)
    model = SixHands()
    seen = []
    model.logits = lambda x, *rest: seen.append(len(x)) or SixHands.logits(model, x, *rest)
    run(VariationalBound(0.4, reading=0.25), model, 0, 4000)
    assert seen[0] == 4000 and 850 < seen[1] < 1150  # and only these are asked
    run(VariationalBound(0.4, reading=0.25).eval(), model, 0, 4000)
    assert seen[2:] == [4000, 4000]  # in validation all are


@pytest.mark.parametrize("theta", [(0.5, 0.0, 0.0, 0.0), (0.0, 0.0, 0.5, 0.0), (0.0, 0.0, 0.0, -0.4)])
def test_any_other_network_has_a_larger_bound(theta):
    """On the same draws; both are means of 18,000 sequences."""
    objective = VariationalBound(0.1, 1.0, "logistic")
    truth, other = (
        torch.tensor([per_token(objective, SixHands(at), rounds=1, count=3000, first=n)[0] for n in range(6)])
        for at in ((0.0,) * 4, theta)
    )
    excess = other - truth
    assert excess.mean() > 5 * excess.std() / 6**0.5


def test_without_the_first_term_there_is_no_bound_below_the_noisiest_time():
    objective = VariationalBound(t_max=0.5)
    whole, error = per_token(objective, SixHands())
    prior, _ = per_token(objective, SixHands(), part="prior", rounds=2)
    assert prior * 2 == pytest.approx(1.0)  # ½·S(½)·‖c_x‖² = ½·1·2
    assert 2 * (whole - prior) < ENTROPY - 0.3 - 3 * 2 * error


@pytest.mark.parametrize("path", [LinearPath(), LinearPath(noise_scale=0.5), CosinePath(noise_scale=2.0)], ids=repr)
@pytest.mark.parametrize("law, t_max", [("log-snr", 0.99), ("logistic", 0.99), ("logistic", 1.0)])
def test_one_time_a_sample_estimates_the_integral_over_the_signal_to_noise_ratio(law, t_max, path):
    """½∫ e^{−S} dS, known; the S of the drawn times is that of the path, in units of its noise."""
    objective = VariationalBound(0.1, t_max, law, center=0.5, scale=1.5)
    t, weight = objective.draw(path, Rng(0, torch.arange(20_000)), 20_000)
    snr = path.snr(t) / path.noise_scale**2
    found = weight * (-snr).exp()
    first, last = (path.snr(torch.tensor(end).double()) / path.noise_scale**2 for end in (t_max, 0.1))
    expected = ((-first).exp() - (-last).exp()) / 2
    assert found.mean() == pytest.approx(float(expected), abs=4 * float(found.std()) / 20_000**0.5)
    assert (t >= 0.1 - 1e-9).all() and (t <= t_max).all()


def test_the_bound_is_in_units_of_the_noise():
    """With ν = ½ the same S is found at other times; the bound is the same."""
    half = SixHands(nu=0.5)
    value, error = per_token(VariationalBound(0.1, 1.0, "logistic", center=2.0, scale=1.5), half)
    assert 2 * value == pytest.approx(ENTROPY, abs=3 * 2 * error)


def test_cross_entropy_is_added_to_the_bound_at_its_own_times():
    model, rng = SixHands(BESIDE), Rng(1, torch.arange(BATCH), 0)
    bound, more = (run(VariationalBound(0.1, cross_entropy=weight), model).sum for weight in (0.0, 0.5))
    x_0 = model.codebook.encode(hands(BATCH))
    t = VariationalBound(0.1).draw(model.path, rng, BATCH)[0].to(x_0)
    logits = model.logits(model.path.noise(x_0, model.path.draw_noise(rng, "eps", x_0), t), t, t)
    assert torch.allclose(more - bound, 0.5 * cross_entropy(logits, hands(BATCH)).sum())


def test_cross_entropy_falls_from_independent_words_to_nothing():
    for t, expected in ((1.0, INDEPENDENT / 2), (0.02, 0.0)):
        objective = CrossEntropy(Uniform(t, t))
        assert per_token(objective, SixHands(), rounds=2, count=600)[0] == pytest.approx(expected, abs=1e-6)
    middle = [per_token(CrossEntropy(Uniform(t, t)), SixHands(), rounds=2)[0] for t in (0.9, 0.6, 0.4, 0.2)]
    assert sorted(middle, reverse=True) == middle and math.exp(INDEPENDENT / 2) == pytest.approx(4.76, abs=0.005)


# What any user may rely on.


def network_map(codebook=None, seed=0):
    torch.manual_seed(seed)
    codebook = codebook or Embedding(len(WORDS), 4)
    config = BackboneConfig(
        state_size=codebook.state_size, output_size=len(WORDS), width=16, depth=1, heads=2, time_scale=1.0,
        vector_size=3,
    )  # fmt: skip
    network = Backbone(config)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return FlowMap(network, LinearPath(), data_scale=1.0, codebook=codebook)


def with_context(count=48):
    vector = torch.randn(count, 3, generator=torch.Generator().manual_seed(3))
    return TokenStates(hands(count), Context(vector=vector))


@pytest.mark.parametrize("name", TOKEN_OBJECTIVES)
def test_a_network_and_its_codes_learn_and_a_teacher_does_not(name):
    model, teacher, batch = network_map(), network_map(seed=1), with_context()
    loss = TOKEN_OBJECTIVES[name]()(model, batch, teacher=teacher, rng=Rng(0, torch.arange(batch.size)), step=0)
    loss.sum.backward()
    assert torch.isfinite(loss.sum) and float(loss.count) == 2 * batch.size
    moved = model.codebook.weight.grad
    assert moved is None if name == "endpoint" else moved.norm() > 0
    for parameter in model.network.parameters():
        assert torch.isfinite(parameter.grad).all()
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("name", ["kl-psd", "esd", "lsd"])
def test_off_the_diagonal_the_gradient_is_that_of_cross_entropy_to_a_fixed_target_and_codes_stay(name):
    objective, model, batch = TOKEN_OBJECTIVES[name](diagonal=0.0), network_map(), with_context()
    rng = Rng(0, torch.arange(batch.size))
    parameters = list(model.network.parameters())
    got = torch.autograd.grad(objective(model, batch, rng=rng, step=0).sum, [*parameters, model.codebook.weight],
                              allow_unused=True)  # fmt: skip
    assert got[-1] is None or not got[-1].any()
    x, on_diagonal = objective.noised(model, batch, rng, 0)
    assert not on_diagonal.any() and (x.s <= x.t).all()
    fixed = copy.deepcopy(model)
    q = objective.taught(fixed, x, 0)[1].detach()
    loss = -(q * model.logits(x.x_t.detach(), x.t, x.s, x.context).log_softmax(-1)).sum()
    expected = torch.autograd.grad(loss, parameters)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(got, expected, strict=False))
    assert torch.allclose(q.sum(-1), torch.ones(batch.size, 2)) and (q >= 0).all()


@pytest.mark.parametrize("name", TOKEN_OBJECTIVES)
def test_slices_change_nothing(name):
    objective, model, batch = TOKEN_OBJECTIVES[name](), network_map(), with_context()
    whole = objective(model, batch, rng=Rng(3, torch.arange(48), 5), step=0)
    parts = []
    for rows in (slice(0, 16), slice(16, 48)):
        part = batch[rows]
        parts.append(objective(model, part, rng=Rng(3, torch.arange(48)[rows], 5), step=0))
    assert torch.allclose(whole.sum, parts[0].sum + parts[1].sum, rtol=1e-5)
    assert whole.count == parts[0].count + parts[1].count


@pytest.mark.parametrize("name", ["cross-entropy", "kl-psd", "esd", "lsd"])
@pytest.mark.parametrize("at", [0.0, 1.0])
def test_the_ends_of_time_are_finite(name, at):
    class WithPrior(FlowMap):
        def logits(self, x_t, t, s, context=None, self_cond=None):
            own = super().logits(x_t, t, s, context, self_cond)
            return own + self.codebook.prior_logits(x_t, 1 - t, t)

    plain = network_map()
    model = WithPrior(plain.network, plain.path, data_scale=1.0, codebook=plain.codebook)
    objective = TOKEN_OBJECTIVES[name](times=Uniform(at, at))
    loss = objective(model, with_context(), rng=Rng(0, torch.arange(48)), step=0)
    loss.sum.backward()
    assert torch.isfinite(loss.sum)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_pair_from_noise_to_data_is_drawn_by_its_own_probability():
    objective = ProgressiveKL(0.5, boundary=1 / 8)
    x, on_diagonal = objective.noised(SixHands(), TokenStates(hands(4000)), Rng(0, torch.arange(4000)), 0)
    whole = ((x.t == 1) & (x.s == 0))[~on_diagonal]
    assert float(whole.double().mean()) == pytest.approx(1 / 8, abs=4 * (7 / 64 / len(whole)) ** 0.5)
    assert torch.equal(x.s[on_diagonal], x.t[on_diagonal]) and not ((x.t == 1) & on_diagonal).any()


@pytest.mark.parametrize("gamma", [0.0, 1e-7, 1.0])
def test_a_middle_at_either_end_is_one_jump(gamma):
    """In fp32 the weight a rounds; the target stays a distribution."""
    model, batch = network_map(), with_context()
    objective = ProgressiveKL(0.0, gamma=gamma)
    x, _ = objective.noised(model, batch, Rng(0, torch.arange(48)), 0)
    q, p = objective.taught(model, x, 0)[1], model.logits(x.x_t, x.t, x.s, x.context).softmax(-1)
    assert (q >= 0).all() and torch.isfinite(objective.divergence(model, model, x, 0)[0]).all()
    if gamma < 1:
        inside = x.s > objective.t_min
        assert torch.allclose(q[inside], p[inside], atol=1e-4)


def test_the_weight_is_the_published_one():
    model, batch, rng = network_map(), with_context(), Rng(0, torch.arange(48))
    objective = ProgressiveKL(0.0, power=0.5, floor=1e-6)
    x, _ = objective.noised(model, batch, rng, 0)
    error, weight = objective.divergence(model, model, x, 0)
    q, p = objective.taught(model, x, 0)[1], model.logits(x.x_t, x.t, x.s, x.context).softmax(-1)
    assert torch.allclose(weight, ((q - p).square().sum((1, 2)) + 1e-6).rsqrt(), rtol=1e-4)
    assert torch.allclose(objective(model, batch, rng=rng, step=0).sum, (weight * error).sum())
    assert not weight.requires_grad and torch.equal(batch.count, torch.tensor(96.0))


def test_a_target_of_the_linear_form_stays_in_the_simplex_for_a_wrong_map():
    model, batch, rng = SixHands((2.0, -3.0, 1.0, 0.5)), TokenStates(hands(BATCH)), Rng(0, torch.arange(BATCH))
    for objective in (EulerianKL(0.0), LagrangianKL(0.0), EulerianKL(0.0, form="log"), LagrangianKL(0.0, form="log")):
        x, _ = objective.noised(model, batch, rng, 0)
        q = objective.taught(model, x, 0)[1]
        assert (q >= 0).all() and torch.allclose(q.sum(-1), torch.ones_like(q[..., 0]))
        assert (x.s > 0.99 * objective.t_min).all()


def test_what_cannot_be_is_refused():
    class Cosine(SixHands):
        def __init__(self):
            super().__init__()
            self.path = CosinePath()

    with pytest.raises(ValueError, match="linear path"):
        run(ProgressiveKL(0.0), Cosine(), count=6)
    assert torch.isfinite(run(CrossEntropy(), Cosine(), count=6).sum)
    with pytest.raises(ValueError, match="pole"):
        CrossEntropy(t_min=0.0)
    with pytest.raises(ValueError, match="< 1 for log-snr"):
        VariationalBound(t_max=1.0)
    with pytest.raises(ValueError, match="known are log-snr"):
        VariationalBound(law="snr")
    with pytest.raises(ValueError, match="forms are"):
        EulerianKL(form="square")


def test_rows_and_devices_of_a_batch():
    batch = with_context(6).to(torch.device("cpu"))
    assert batch.size == 6 and batch.context.vector.shape == (6, 3)
    one = torch.arange(6.0)
    x = NoisedTokens(batch.tokens, one[:, None, None], one, one, batch.context, one)[torch.tensor([4, 1])]
    assert x.t.tolist() == [4, 1] and torch.equal(x.context.vector, batch.context.vector[[4, 1]])
