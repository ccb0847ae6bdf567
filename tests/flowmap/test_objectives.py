import copy
import math

import pytest
import torch

from flowmap.backbone import Backbone, BackboneConfig
from flowmap.maps import FlowMap
from flowmap.objectives import (
    OBJECTIVES,
    AlphaFlow,
    Consistency,
    ConsistencyMap,
    ContinuousConsistency,
    Drifting,
    EnergyScore,
    Eulerian,
    FlowMatching,
    ImprovedMeanFlow,
    InductiveMomentMatching,
    Lagrangian,
    MeanFlow,
    Progressive,
    Shortcut,
    StateBatch,
    TerminalVelocity,
    Trajectory,
)
from flowmap.objectives.base import derivative
from flowmap.objectives.two_time import Noised
from flowmap.path import CosinePath
from flowmap.rng import Rng
from flowmap.times import Uniform
from tests.flowmap.oracles import GaussianMap, Mixture, gaussian

BATCH, ROUNDS = 2048, 16


def gradients(objective, model, step=10**6, rounds=ROUNDS):
    """(rounds, 4): the mean gradient of independent batches with respect to the map's perturbation."""
    found = []
    for n in range(rounds):
        rng = Rng(1, torch.arange(BATCH), n)
        loss = objective(model, StateBatch(gaussian(BATCH, n)), rng=rng, step=step)
        (gradient,) = torch.autograd.grad(loss.sum / loss.count, model.theta)
        found.append(gradient)
    return torch.stack(found)


def deviations(found):
    """Each component's mean over its standard error."""
    return found.mean(0) / (found.std(0) / len(found) ** 0.5).clamp_min(1e-12)


STATIONARY = {
    "flow-matching": FlowMatching(),
    "lagrangian": Lagrangian(diagonal=0.5),
    "eulerian": Eulerian(diagonal=0.5),
    "progressive": Progressive(diagonal=0.5),
    "progressive at a half": Progressive(diagonal=0.0, gamma=0.5),
    "shortcut": Shortcut(diagonal=0.5, clip=100.0),
    "terminal-velocity": TerminalVelocity(diagonal=0.5),
    "mean-flow": MeanFlow(power=0.0),
    "improved-mean-flow": ImprovedMeanFlow(power=0.0),
    "imm, paired U": InductiveMomentMatching(statistic="paired-u", k=6, t_max=0.95, weighted=False),
    "sCM, not normalised": ContinuousConsistency(Uniform(0.1, 0.95), normalise=None),
    "lagrangian, learned weight": Lagrangian(diagonal=0.5, learned_weight=True),
}


@pytest.mark.parametrize("name", STATIONARY)
def test_the_exact_map_is_a_stationary_point_and_its_neighbour_is_not(name):
    objective = STATIONARY[name].double()
    at_truth = deviations(gradients(objective, GaussianMap()))
    assert at_truth.abs().max() < 4.5, at_truth
    beside = deviations(gradients(objective, GaussianMap((0.5, -0.3, 0.5, -0.3)), rounds=8))
    assert beside.abs().max() > 6, beside


def at_alpha(alpha):
    """Off the diagonal, of this α at step 10⁶."""
    place = math.log(1 / alpha - 1) / 12 + 0.5
    flow = AlphaFlow(0.0, Uniform(), end=round(10**6 / place))
    assert flow.alpha(10**6) == pytest.approx(alpha, rel=1e-4)
    return flow


def size_at_truth(objective, step=10**6):
    return gradients(objective, GaussianMap(), step).mean(0).norm()


@pytest.mark.parametrize(
    "biased, nearly",
    [
        (at_alpha(0.8), at_alpha(0.02)),
        (Consistency(Uniform(0.1, 0.95), stages=4, huber=10.0), Consistency(Uniform(0.1, 0.95), stages=8, huber=10.0)),
        (
            ConsistencyMap(Uniform(0.1, 0.95), stages=2, huber=10.0),
            ConsistencyMap(Uniform(0.1, 0.95), stages=6, huber=10.0),
        ),
        (
            InductiveMomentMatching(group_size=2, statistic="v", k=6, t_max=0.95, weighted=False),
            InductiveMomentMatching(group_size=64, statistic="v", k=6, t_max=0.95, weighted=False),
        ),
    ],
    ids=["AlphaFlow, α → 0", "ECT, r → t", "ECT of the map, r → t", "IMM's V-statistic, M → ∞"],
)
def test_those_that_vanish_only_in_a_limit_do_so(biased, nearly):
    assert size_at_truth(nearly) < 0.35 * size_at_truth(biased)


def test_the_full_cross_u_statistic_is_biased_where_the_paired_one_is_not():
    objective = InductiveMomentMatching(statistic="u", k=6, t_max=0.95, weighted=False)
    biased = gradients(objective, GaussianMap())
    assert deviations(biased).abs().max() > 8


def test_adaptive_weights_move_mean_flow_off_the_truth():
    """A robust regression on a residual that still holds ε − x: off wherever the law of x_0 given x_t is skewed."""
    skewed = Mixture(weights=(0.8, 0.2), means=(-0.5, 1.5), deviations=(0.2, 0.2))
    x_0 = skewed.sample(BATCH * 4)

    def gradient(power):
        objective = MeanFlow(diagonal=1.0, times=Uniform(0.3, 0.9), power=power)
        loss = objective(skewed, StateBatch(x_0), rng=Rng(0, torch.arange(len(x_0))), step=0)
        return float(torch.autograd.grad(loss.sum / loss.count, skewed.offset)[0].abs())

    assert gradient(0.0) < 0.05 and gradient(1.0) > 0.15


MOVING = {  # the part of the residual that is differentiated
    "lagrangian": lambda m, x: _terminal(m, x),
    "terminal-velocity": lambda m, x: _terminal(m, x),
    **{
        name: lambda m, x: x.velocity(m)
        for name in (
            "flow-matching", "eulerian", "progressive", "shortcut", "mean-flow", "improved-mean-flow",
            "continuous-consistency",
        )
    },
    "alpha-flow": lambda m, x: x.velocity(m) * AlphaFlow().alpha(0) ** -0.5,
}  # fmt: skip


def _terminal(m, x):
    v, dv = derivative(m.velocity, (x.x_t, x.t, x.s), (None, 0.0, 1.0))
    return v - x.span() * dv


def a_batch(count=64):
    rng = Rng(0, torch.arange(count))
    x_0, eps = gaussian(count), gaussian(count, 7, 0.0, 1.0)
    t = 0.3 + 0.6 * rng.uniform("t", count, dtype=torch.float64)
    s = t * rng.uniform("s", count, dtype=torch.float64)
    t, s = (time.mul(64).round().div(64).clamp_min(1 / 64) for time in (t, s))
    path = GaussianMap().path
    return Noised(x_0, path.noise(x_0, eps, t), eps - x_0, t, s, None, rng.uniform("u", count, dtype=torch.float64))


@pytest.mark.parametrize("name", MOVING)
def test_gradients_stop_exactly_where_the_method_says(name):
    objective = OBJECTIVES[name]()
    model = GaussianMap((0.3, -0.2, 0.3, -0.2))
    x = a_batch()
    delta = x.velocity(model) - x.dx if name == "flow-matching" else objective.residual(model, model, x, 0)
    (got,) = torch.autograd.grad(delta.square().sum(), model.theta)
    (expected,) = torch.autograd.grad((2 * delta.detach() * MOVING[name](model, x)).sum(), model.theta)
    assert torch.allclose(got, expected, rtol=1e-6, atol=1e-9)
    assert got.norm() > 0.01


def _imm(objective, model, fixed, x_0, rng):
    t, r, s = (time.repeat_interleave(4) for time in objective.times(model.path, rng.groups(4), len(x_0) // 4))
    eps = model.path.draw_noise(rng, "eps", x_0)
    landed = model.jump(model.path.noise(x_0, eps, t), t, s)
    target = fixed.jump(model.path.noise(x_0, eps, r), r, s)
    far = lambda a, b: (-(a - b).square().clamp_min(1e-8).sqrt() / model.output_scale(t[i], s[i])).exp()  # noqa: E731
    total = 0.0
    for i in range(len(x_0)):
        for j in range(4 * (i // 4), 4 * (i // 4) + 4):
            total += (far(landed[i], landed[j]) - 2 * far(landed[i], target[j])).sum() / 4
    return total


def _consistency(objective, model, fixed, x_0, rng):
    t, eps = objective.times.draw(rng, "t", len(x_0)).to(x_0), model.path.draw_noise(rng, "eps", x_0)
    r, apart = objective.earlier(model.path, t, 0)
    whole = getattr(objective, "whole", 1.0)
    s = torch.where(rng.uniform("whole", len(x_0)) < whole, 0.0, rng.uniform("s", len(x_0))).to(x_0) * r
    ahead, behind = (m.jump(model.path.noise(x_0, eps, at), at, s) for m, at in ((model, t), (fixed, r)))
    apart = apart * (t - s) / t  # so far apart in x_0, on the linear path
    return (((ahead - behind).square().sum(1) + 0.00054**2).sqrt() / apart).sum()


def _drifting(objective, model, fixed, x_0, rng):
    one, eps = torch.ones(len(x_0), dtype=x_0.dtype), model.path.draw_noise(rng, "eps", x_0)
    made = fixed.jump(eps, one, 0 * one)
    field = objective.field(made[None], x_0[None])[0]
    return -2 * (field * model.jump(eps, one, 0 * one)).sum() / x_0.shape[1]


@pytest.mark.parametrize(
    "objective, written_out",
    [
        (InductiveMomentMatching(k=4, weighted=False), _imm),
        (Consistency(Uniform(0.1, 0.95)), _consistency),
        (ConsistencyMap(Uniform(0.1, 0.95)), _consistency),
        (Drifting(group_size=32), _drifting),
    ],
    ids=["imm", "consistency", "consistency-map", "drifting"],
)
def test_what_a_method_learns_from_itself_is_a_constant(objective, written_out):
    """The gradient is that of the loss written out, the second model a copy that does not move."""
    model, x_0, rng = GaussianMap((0.3, -0.2, 0.3, -0.2)), gaussian(32), Rng(0, torch.arange(32))
    loss = objective.double()(model, StateBatch(x_0), rng=rng, step=0)
    (got,) = torch.autograd.grad(loss.sum, model.theta)
    fixed = copy.deepcopy(model).requires_grad_(False)
    (expected,) = torch.autograd.grad(written_out(objective, model, fixed, x_0, rng), model.theta)
    assert torch.allclose(got, expected, rtol=1e-6, atol=1e-9)
    assert got.norm() > 0.01


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_gradient_reaches_a_teacher(name):
    model, teacher = GaussianMap((0.3, -0.2, 0.3, -0.2)), GaussianMap((0.2, 0.1, 0.0, 0.1))
    batch = StateBatch(gaussian(128))
    loss = OBJECTIVES[name]().double()(model, batch, teacher=teacher, rng=Rng(0, torch.arange(128)), step=5)
    loss.sum.backward()
    assert teacher.theta.grad is None or not teacher.theta.grad.any()
    assert model.theta.grad.norm() > 0 and torch.isfinite(loss.sum)


def test_the_trajectory_objective_moves_the_first_jump_alone():
    model, x = GaussianMap((0.3, -0.2, 0.3, -0.2)), a_batch()
    fixed = copy.deepcopy(model)
    delta = Trajectory().residual(model, fixed, x, 0)
    (got,) = torch.autograd.grad(delta.square().sum(), model.theta)
    zero = torch.zeros_like(x.s)
    landed = model.jump(x.x_t, x.t, x.s)
    through = torch.autograd.functional.jvp(
        lambda at: fixed.jump(at, x.s, zero), landed.detach(), torch.ones_like(landed)
    )[1]
    (expected,) = torch.autograd.grad((2 * delta.detach() * through * landed).sum(), model.theta)
    assert torch.allclose(got, expected, rtol=1e-6)


def test_at_the_exact_map_a_trajectory_is_consistent_up_to_the_step_of_its_solver():
    errors = [
        Trajectory(pieces=n).residual(GaussianMap(), GaussianMap(), a_batch(), 0).detach().abs().max() for n in (4, 64)
    ]
    assert errors[1] < errors[0] / 100  # Euler's local error falls with the square of the step


def test_slices_and_groups_change_nothing():
    objective, model = InductiveMomentMatching(group_size=4, k=4), GaussianMap((0.3, -0.2, 0.3, -0.2))
    x_0 = gaussian(32)
    whole = objective(model, StateBatch(x_0), rng=Rng(3, torch.arange(32), 5), step=0)
    halves = [
        objective(model, StateBatch(x_0[part]), rng=Rng(3, torch.arange(32)[part], 5), step=0)
        for part in (slice(0, 16), slice(16, 32))
    ]
    assert torch.allclose(whole.sum, halves[0].sum + halves[1].sum)
    with pytest.raises(ValueError, match="whole groups of 4"):
        objective(model, StateBatch(x_0[2:8]), rng=Rng(3, torch.arange(2, 8), 5), step=0)


def test_inductive_times_are_ordered_and_step_back_in_eta():
    objective = InductiveMomentMatching(k=5)
    path = GaussianMap().path
    t, r, s = objective.times(path, Rng(0, torch.arange(1000)), 1000)
    assert (s <= r).all() and (r <= t).all() and (t <= 0.994).all()
    free = (r > s) & (r < t - 2e-4)
    gap = (path.ratio(t) - path.ratio(r))[free]
    assert torch.allclose(gap, torch.full_like(gap, 0.994 / 0.006 / 2**5), rtol=1e-6)


def test_the_weight_of_imm_is_the_published_one():
    objective, path = InductiveMomentMatching(a=2, b=5), GaussianMap().path
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    lam = 2 * torch.log((1 - t) / t)
    expected = 0.5 * torch.sigmoid(5 - lam) * 2 / (t * (1 - t)) * (1 - t) ** 2 / ((1 - t) ** 2 + t**2)
    assert torch.allclose(objective.weight(path, t), expected)


def test_the_energy_score_is_least_at_the_law_of_the_data():
    def score(tau):
        total = 0.0
        for n in range(20):
            model = GaussianMap(tau=tau)
            batch = StateBatch(gaussian(BATCH, n))
            total += float(EnergyScore()(model, batch, rng=Rng(2, torch.arange(BATCH), n), step=0).sum.detach())
        return total

    assert score(0.4) < min(score(0.3), score(0.55))


def test_drift_vanishes_between_samples_of_one_law_and_points_at_data_otherwise():
    drifting = Drifting(group_size=512, temperatures=(0.2,), normalised=False)
    y = gaussian(512, 1)[None]
    same, away = gaussian(512, 2)[None], gaussian(512, 2)[None] - 0.5
    assert drifting.field(same, y).square().mean() < 0.1 * drifting.field(away, y).square().mean()
    assert (drifting.field(away, y) > 0).double().mean() > 0.95
    scaled = Drifting(group_size=512, temperatures=(0.2,)).field(away, y)
    assert scaled.square().mean() == pytest.approx(1)


@pytest.mark.parametrize(
    "name",
    [
        "lagrangian",
        "eulerian",
        "mean-flow",
        "improved-mean-flow",
        "shortcut",
        "progressive",
        "alpha-flow",
        "continuous-consistency",
        "terminal-velocity",
    ],
)
def test_identities_of_the_linear_path_are_not_used_on_another(name):
    model = FlowMap(Backbone(BackboneConfig(state_size=1, width=8, depth=1, heads=1)), CosinePath(noise_scale=0.5))
    with pytest.raises(ValueError, match="identities of the linear path"):
        OBJECTIVES[name]()(model, StateBatch(torch.zeros(8, 1, 1)), rng=Rng(0, torch.arange(8)), step=0)


def test_spans_have_a_law_of_their_own_or_that_of_the_times():
    apart = ImprovedMeanFlow(times=Uniform(0.4, 0.6), spans=Uniform(0.0, 0.3))
    same = Lagrangian(times=Uniform(0.4, 0.6))
    for objective, low, high in ((apart, 0.0, 0.3), (same, 0.4, 0.6)):
        t, s = objective.pair(Rng(0, torch.arange(500)), 500, 0)
        assert (low <= s).all() and (s <= t).all() and (t <= high).all()


def test_consistency_steps_back_in_the_noise_of_its_paper():
    path, objective = GaussianMap().path, Consistency(stage=10, stages=3)
    t = torch.tensor([0.2, 0.5, 0.9, 0.99], dtype=torch.float64)
    noise = t / (1 - t)  # ν = 1
    for step, a in ((0, 1), (15, 2), (500, 3)):
        r, apart = objective.earlier(path, t, step)
        expected = noise * (1 - (1 + 8 * torch.sigmoid(-noise)) / 2.0**a).clamp_min(0)
        assert torch.allclose(r / (1 - r), expected) and torch.allclose(apart, noise - expected)


def test_alpha_falls_from_one_to_nothing():
    flow = AlphaFlow(end=1000)
    assert flow.alpha(0) > 0.99 and flow.alpha(500) == pytest.approx(0.5) and flow.alpha(1000) == 0.0
    assert 0.005 <= flow.alpha(940) < 0.0051 and flow.alpha(942) == 0.0
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        AlphaFlow(lowest=0.0)


def half_apart(objective):
    """How far half precision takes the gradient of a transformer's parameters, over its norm."""
    torch.manual_seed(0)
    network = Backbone(BackboneConfig(state_size=4, width=32, depth=2, heads=2, time_scale=4.0))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model, batch = FlowMap(network), StateBatch(torch.randn(64, 1, 4))

    def gradient(half):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = objective(model, batch, rng=Rng(0, torch.arange(64)), step=10**6)
        found = torch.autograd.grad(loss.sum, list(network.parameters()), allow_unused=True)
        return torch.cat([g.flatten() for g in found if g is not None])

    exact = gradient(False)
    return float((gradient(True) - exact).norm() / exact.norm())


def test_a_small_alpha_is_taken_in_full_precision():
    """Where half precision's rounding would be divided by it."""
    assert half_apart(at_alpha(0.02)) == 0 < half_apart(at_alpha(0.5)) < 0.02


def test_fine_steps_back_are_taken_in_full_precision():
    """Where half precision does not tell the two states apart."""
    assert half_apart(InductiveMomentMatching(k=12)) == 0 < half_apart(InductiveMomentMatching(k=8))


def test_alpha_flow_goes_over_to_mean_flow():
    """In the gradient, which its α^{−½} keeps of one size; below the lowest α it is MeanFlow's."""
    beside = GaussianMap((0.5, -0.3, 0.5, -0.3))
    exact = gradients(MeanFlow(0.0, Uniform(), power=0.0), beside, rounds=1)
    far, near = (gradients(at_alpha(alpha), beside, rounds=1) for alpha in (0.1, 0.006))
    assert (near - exact).norm() < 0.15 * (far - exact).norm() and (near - exact).norm() < 0.05 * exact.norm()
    assert torch.equal(gradients(AlphaFlow(0.0, Uniform()), beside, rounds=1), exact)


def test_shortcut_spans_are_dyadic_and_inside_the_interval():
    t, s = Shortcut().pair(Rng(0, torch.arange(2000)), 2000, 0)
    span = t - s
    assert set(span.tolist()) == {2.0**-m for m in range(7)}
    assert (s >= 0).all() and (t <= 1).all() and ((t / span) % 1 == 0).all()
