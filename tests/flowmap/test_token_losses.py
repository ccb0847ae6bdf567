"""What may be chosen beside the text's tokens and one pass: squares, frozen teachers, prices, losses on states, two passes."""

import copy

import pytest
import torch

from flowmap.backbone import Backbone, BackboneConfig
from flowmap.codebook import Embedding, OneHot
from flowmap.maps import FlowMap
from flowmap.objectives.base import StateBatch
from flowmap.objectives.energy import EnergyScore
from flowmap.objectives.imm import InductiveMomentMatching
from flowmap.objectives.tokens import (
    CategoricalFlowMap,
    CrossEntropy,
    Endpoint,
    EnergyOnStates,
    EulerianKL,
    LagrangianKL,
    MomentMatchingOnStates,
    ProgressiveKL,
    TokenStates,
    TrajectoryKL,
    VariationalBound,
)
from flowmap.objectives.tokens.base import NoisedTokens, kl
from flowmap.path import LinearPath
from flowmap.rng import Rng
from flowmap.schedule import DecodeError
from flowmap.self_conditioning import TwoPass
from flowmap.times import Uniform
from tests.flowmap.six_hands import TOKENS, WORDS, SixHands
from tests.flowmap.test_token_objectives import BESIDE, deviations, gradients, run

COUNT = 24


class Near(CategoricalFlowMap):
    """Pairs closer than 1e-4."""

    def pair(self, rng, count, step):
        t, _ = super().pair(rng, count, step)
        t = t.clamp_min(0.1)
        return t, t - 1e-4


def network(codebook=None, depth=1, **more):
    torch.manual_seed(0)
    codebook = codebook or Embedding(len(WORDS), 4, norm=2.0)
    config = BackboneConfig(
        codebook.state_size, width=16, depth=depth, heads=2, output_size=codebook.size, time_scale=5.0, **more
    )
    model = FlowMap(Backbone(config), LinearPath(), codebook=codebook, data_scale=1.0).double()
    for part in model.parameters():
        part.data += 0.3 * torch.randn_like(part)
    return model


def fixed(model, count=COUNT, t=0.7):
    tokens = TOKENS.repeat(-(-count // 6), 1)[:count]
    t = torch.full((count,), t, dtype=torch.float64)
    x_0 = model.codebook.encode(tokens).detach()
    noise = torch.randn(x_0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return tokens, model.path.noise(x_0, noise, t), t


# Squares instead of cross-entropy.


@pytest.mark.parametrize(
    "objective", [Endpoint(), Endpoint(Uniform(0.1, 1.0), power=2.0)], ids=["endpoint", "velocity"]
)
def test_squares_are_stationary_at_the_posterior_and_nowhere_near(objective):
    assert deviations(gradients(objective, SixHands(), 8, 2400)).abs().max() < 4.5
    assert deviations(gradients(objective, SixHands(BESIDE), 8, 2400)).abs().max() > 6


def test_the_velocitys_weight_makes_squares_of_the_endpoint_those_of_the_velocity():
    model, objective = SixHands(BESIDE), Endpoint(Uniform(0.5, 0.5), power=2.0)
    loss = run(objective, model, count=60)
    x, on = objective.noised(model, TokenStates(TOKENS.repeat(10, 1)), Rng(1, torch.arange(60), 0), 0)
    assert on.all()
    exact = model.path.secant(x.x_t, model.codebook.encode(x.tokens), x.t)
    assert torch.allclose(loss.sum, (model.velocity(x.x_t, x.t, x.t) - exact).square().sum())


def test_squares_move_no_codes_while_cross_entropy_does():
    model = network()
    for objective, moved in ((Endpoint(), False), (CrossEntropy(), True)):
        loss = run(objective, model, count=COUNT)
        (found,) = torch.autograd.grad(loss.sum, model.codebook.weight, allow_unused=True)
        assert (found is not None and bool(found.abs().sum() > 0)) == moved


# A frozen teacher in the place of the text.


@pytest.mark.parametrize("kind", [ProgressiveKL, lambda d: EulerianKL(d, Uniform(0.1, 1.0)), LagrangianKL])
def test_taught_by_the_exact_denoiser_the_exact_map_has_no_loss_at_all_and_its_neighbour_has(kind):
    objective = kind(0.5)
    objective.frozen = (SixHands(),)
    exact, beside = run(objective, SixHands()), run(objective, SixHands(BESIDE))
    assert abs(exact.sum / exact.count) < 1e-5 < 0.01 < beside.sum / beside.count
    assert deviations(gradients(objective, SixHands())).abs().max() < 4.5
    objective.frozen = ()
    assert run(objective, SixHands()).sum / exact.count > 0.1  # the text's tokens keep their entropy


@pytest.mark.parametrize("kind", [EulerianKL, LagrangianKL, CategoricalFlowMap])
def test_the_local_law_of_a_target_is_the_frozen_teachers(kind):
    objective, other = kind(0.0, times=Uniform(0.2, 1.0)), SixHands(BESIDE)
    x, _ = objective.noised(other, TokenStates(TOKENS), Rng(0, torch.arange(6), 0), 0)
    own = objective.taught(other, x, 0)[1]
    objective.frozen = (SixHands(),)
    assert (objective.taught(other, x, 0)[1] - own).abs().max() > 0.01


# Along the teacher's trajectories.


@pytest.mark.parametrize("t, s", [(1.0, 0.0), (1.0, 0.3), (0.8, 0.2)])
def test_the_mean_along_a_trajectory_nears_the_exact_maps_law_as_its_steps_grow(t, s):
    oracle = SixHands()
    tokens, x, at = fixed(oracle, 120, t)
    to = torch.full_like(at, s)
    wrong = []
    for n in (2, 8, 32):
        objective = TrajectoryKL(num_steps=n, t_min=1e-3)
        found = objective.taught(oracle, NoisedTokens(tokens, x, at, to, None, at), 0)[1]
        assert torch.allclose(found.sum(-1), torch.ones_like(found[..., 0])) and found.min() >= 0
        wrong.append(float((found - oracle.probabilities(x, at, to)).abs().mean().detach()))
    assert wrong[0] > 2 * wrong[1] > 4 * wrong[2] and wrong[2] < 0.01


def test_a_trajectory_asks_the_denoiser_alone():
    """So that a few-step map that is wrong has no part in its own target."""
    objective, oracle = TrajectoryKL(num_steps=4), SixHands()
    wrong = SixHands((0.0, 3.0, 0.0, 0.0))  # off where t > s only
    tokens, x, t = fixed(oracle, 12)
    at = NoisedTokens(tokens, x, t, 0.2 * t, None, t)
    assert torch.equal(objective.taught(oracle, at, 0)[1], objective.taught(wrong, at, 0)[1])
    assert (ProgressiveKL().taught(oracle, at, 0)[1] - ProgressiveKL().taught(wrong, at, 0)[1]).abs().max() > 0.01


@pytest.mark.parametrize(
    "options, match",
    [
        ({"num_steps": 0}, "num_steps 0"),
        ({"jumps": 3}, "jumps 3"),
        ({"jumps": 0}, "jumps 0"),
        ({"num_steps": 6, "jumps": 4}, "divides"),
    ],
)
def test_trajectories_that_jumps_do_not_divide_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        TrajectoryKL(**options)


def along(oracle, x, times):
    """q by a loop over the steps between these rising times."""
    at, mean, (end, *_, begin) = x.x_t, 0, times
    for u, s in zip(reversed(times), reversed(times[:-1]), strict=False):
        here, there = torch.full_like(x.t, u), torch.full_like(x.t, s)
        z = oracle.logits(at, here, here)
        share = (
            (1 / s - 1 / u) / (1 / end - 1 / begin) if end else float(s == 0)
        )  # all of a way to the text is its last step
        mean = mean + share * z.softmax(-1)
        at = oracle.path.jump(at, oracle.codebook.expected(z), here, there)
    return mean


def test_a_trajectory_teaches_the_jumps_that_a_sampler_makes_on_the_laws_grid_from_where_it_stood():
    """In 1, 2 and 4 jumps, and from where each begins to the end."""
    law, oracle = DecodeError(6), SixHands()
    tokens, noise, t = fixed(oracle, 12, 1.0)
    x = NoisedTokens(tokens, noise, t, torch.zeros_like(t), None, t)
    jumps, q = TrajectoryKL(times=law, num_steps=16, jumps=4).taught(oracle, x, 0)
    u = [0.0, *law.time_of(torch.linspace(0, 1, 17, dtype=torch.float64) ** 2).tolist()[1:16], 1.0]
    begun, ended = jumps.t[::12].tolist(), jumps.s[::12].tolist()
    made = [
        (min(range(17), key=lambda k: abs(u[k] - t)), min(range(17), key=lambda k: abs(u[k] - s)))
        for t, s in zip(begun, ended, strict=True)
    ]
    assert sorted(made) == [(4, 0), (8, 0), (8, 4), (12, 0), (12, 8), (16, 0), (16, 8), (16, 12)]
    assert [u[a] for a, _ in made] == pytest.approx(begun) and [u[b] for _, b in made] == pytest.approx(ended)
    for k, (a, b) in enumerate(made):
        rows = torch.arange(12 * k, 12 * (k + 1))
        assert torch.allclose(along(oracle, jumps[rows], u[b : a + 1]), q[rows], atol=1e-6)
        assert torch.equal(jumps.tokens[rows], tokens)
        assert a < 16 or torch.equal(jumps.x_t[rows], noise)


def test_jumps_count_as_samples_and_the_loss_does_not_depend_on_slices():
    objective, model = TrajectoryKL(0.0, num_steps=4, jumps=2, boundary=1.0, t_min=0.05), network()
    batch, rows = TokenStates(TOKENS), torch.arange(6)
    whole = objective(model, batch, rng=Rng(0, rows), step=0)
    halves = [objective(model, batch[half], rng=Rng(0, half), step=0) for half in rows.split(3)]
    assert torch.allclose(whole.sum, halves[0].sum + halves[1].sum)
    total, count = whole.metrics["few_step_kl"]
    assert float(count) == 3 * float(whole.count) and torch.allclose(total, whole.few_step)


def test_a_row_that_is_asked_twice_is_so_in_every_jump_of_its_way():
    objective = TrajectoryKL(0.0, num_steps=4, jumps=2, boundary=1.0, t_min=0.05, self_conditioning=1.0)
    model = network(self_conditioning=True)
    x, _ = objective.noised(model, TokenStates(TOKENS), Rng(0, torch.arange(6)), 0)
    error, _ = objective.divergence(model, TwoPass(model), x, 0)
    jumps, q = objective.taught(TwoPass(model), x, 0)
    p = TwoPass(model).logits(jumps.x_t, jumps.t, jumps.s)
    assert len(jumps.t) == 18 and torch.allclose(error, kl(q, p))
    assert not torch.allclose(error, kl(q, model.logits(jumps.x_t, jumps.t, jumps.s)))


@pytest.mark.parametrize("jumps, left", [(1, [1.0, 0.75, 0.5, 0.25]), (2, [1.0, 9 / 16, 4 / 16, 1 / 16])])
def test_a_trajectorys_steps_are_of_the_laws_shares(jumps, left):
    """Even, or growing shorter, so that a jump of the grid "closing" is taught by the denoiser's own steps on a finer one."""
    law, asked = DecodeError(6), []

    class Listening(SixHands):
        def logits(self, x_t, t, s, context=None):
            asked.append(float(t[0]))
            return super().logits(x_t, t, s, context)

    tokens, x, t = fixed(oracle := Listening(), 6, 1.0)
    start = NoisedTokens(tokens, x, t, torch.zeros_like(t), None, t)
    TrajectoryKL(times=law, num_steps=4, jumps=jumps).taught(oracle, start, 0)
    assert asked == pytest.approx(law.time_of(torch.tensor(left, dtype=torch.float64)).tolist(), abs=1e-6)


def test_the_first_steps_are_the_denoisers_alone():
    objective, rng = ProgressiveKL(0.25), Rng(0, torch.arange(400))
    objective.denoiser_steps = 10
    alone, beside = (objective.noised(SixHands(), TokenStates(TOKENS.repeat(67, 1)[:400]), rng, n)[1] for n in (9, 10))
    assert alone.all() and float(beside.double().mean()) == pytest.approx(0.25, abs=0.07)


# Categorical flow maps.


def test_the_price_is_the_square_of_what_s_changes():
    model, objective = SixHands(BESIDE), CategoricalFlowMap(0.0)
    x, _ = objective.noised(model, TokenStates(TOKENS), Rng(0, torch.arange(6), 0), 0)
    priced, _ = objective.divergence(model, model, x, 0)
    objective.price = 0.0
    free, _ = objective.divergence(model, model, x, 0)
    h = 1e-5
    change = [model.logits(x.x_t, x.t, x.s + sign * h).softmax(-1) for sign in (1, -1)]
    slope = (change[0] - change[1]) / (2 * h) * ((x.t - x.s) / x.t)[:, None, None]
    assert torch.allclose(priced - free, slope.square().flatten(1).sum(1), rtol=1e-3, atol=1e-8)


def test_categorical_flow_maps_hold_the_exact_map_for_short_jumps_only():
    short, long = Near(0.0), CategoricalFlowMap(0.0, times=Uniform(0.1, 1.0))
    assert run(short, SixHands()).sum.abs() < 1e-4
    assert run(long, SixHands()).sum / run(long, SixHands()).count > 0.01


def test_the_price_teaches_codes_nothing():
    model = network()
    loss = run(CategoricalFlowMap(0.0), model, count=COUNT)
    found = torch.autograd.grad(loss.sum, [model.codebook.weight, model.network.write.weight], allow_unused=True)
    assert found[0] is None and found[1].abs().sum() > 0


# Losses on states.


@pytest.mark.parametrize(
    "objective, few",
    [
        (EnergyOnStates(weight=0.3), EnergyScore()),
        (MomentMatchingOnStates(weight=0.3, group_size=4), InductiveMomentMatching(4, 8, weighted=False, t_min=0.01)),
    ],
    ids=["energy", "imm"],
)
def test_a_loss_on_states_stands_beside_the_cross_entropy_and_reaches_the_network_through_expected_codes(
    objective, few
):
    model = network()
    tokens, rng = TOKENS.repeat(4, 1), Rng(1, torch.arange(COUNT), 0)
    whole = objective(model, TokenStates(tokens), rng=rng, step=0)
    local = CrossEntropy()(model, TokenStates(tokens), rng=rng, step=0)
    alone = few(model, StateBatch(model.codebook.encode(tokens).detach()), rng=rng, step=0)
    assert torch.allclose(whole.sum, local.sum + 0.3 * 2 * alone.sum) and whole.count == local.count
    assert objective.coupling == few.coupling and objective.group_size == few.group_size
    of_codes = torch.autograd.grad(whole.sum - local.sum, model.codebook.weight, allow_unused=True)[0]
    assert of_codes is None or of_codes.abs().max() < 1e-12
    assert torch.autograd.grad(alone.sum, model.network.write.weight)[0].abs().sum() > 0


def test_a_token_maps_output_scale_is_how_far_an_expected_code_moves_the_jump():
    model = network(OneHot(len(WORDS)))
    _, x, t = fixed(model)
    s = t * 0.4
    g = torch.rand_like(x)
    moved = model.path.jump(x, g + 1e-3, t, s) - model.path.jump(x, g, t, s)
    assert torch.allclose(moved.amax((1, 2)), 1e-3 * model.output_scale(t, s))


# Two passes.


def test_the_second_pass_reads_what_the_first_expects_and_no_gradient_goes_through_the_first():
    model = network(self_conditioning=True)
    _, x, t = fixed(model)
    s = t * 0.3
    told = torch.arange(COUNT) % 3 == 0
    guess = model.codebook.expected(model.logits(x, t, t)).detach()
    second, plain = model.logits(x, t, s, self_cond=guess), model.logits(x, t, s)
    found = TwoPass(model, told).logits(x, t, s)
    assert torch.allclose(found[told], second[told]) and torch.allclose(found[~told], plain[~told])
    assert (second - plain).abs().max() > 0.01
    assert torch.allclose(TwoPass(model).logits(x, t, s), second)
    parts = [p for p in model.network.parameters() if p.requires_grad]
    a, b = (torch.autograd.grad(z[told].square().sum(), parts, allow_unused=True) for z in (found, second))
    assert all(torch.allclose(u, v) for u, v in zip(a, b, strict=True) if u is not None)


def test_two_passes_are_a_function_of_the_state_whose_derivative_includes_the_first():
    """What an objective that differentiates, or a likelihood by the flow, must see: half of it is no derivative."""
    from flowmap.objectives.base import derivative

    model = network(self_conditioning=True)
    _, x, t = fixed(model)
    two, s = TwoPass(model), t * 0.3
    _, found = derivative(lambda *at: two.logits(*at), (x, t, s), (torch.ones_like(x), 1.0, 0.0))
    h = 1e-5
    ahead, behind = (two.logits(x + sign * h, t + sign * h, s) for sign in (1, -1))
    assert torch.allclose(found, (ahead - behind) / (2 * h), atol=1e-6)
    half = model.codebook.expected(model.logits(x, t, t)).detach()
    ahead, behind = (model.logits(x + sign * h, t + sign * h, s, self_cond=half) for sign in (1, -1))
    assert not torch.allclose(found, (ahead - behind) / (2 * h), atol=1e-3)


def test_a_divergence_may_look_through_the_first_pass_as_a_loss_does_not():
    model = network(self_conditioning=True)
    _, x, t = fixed(model)
    x.requires_grad_()
    wide, narrow = (TwoPass(model, through=through).logits(x, t, t).square().sum() for through in (True, False))
    assert torch.allclose(wide, narrow)
    guess = model.path.expected(model.codebook, model.logits(x, t, t), x)
    whole = torch.autograd.grad(model.logits(x, t, t, self_cond=guess).square().sum(), x)[0]
    assert torch.allclose(torch.autograd.grad(wide, x)[0], whole)
    assert not torch.allclose(torch.autograd.grad(narrow, x)[0], whole, atol=1e-3)


@pytest.mark.parametrize("kind", [CrossEntropy, VariationalBound, ProgressiveKL, LagrangianKL])
def test_a_share_of_the_samples_is_asked_twice_and_the_others_as_ever(kind):
    model = network(self_conditioning=True)
    plain = run(kind(), model, count=COUNT)
    shared = run(kind(self_conditioning=0.5), model, count=COUNT)
    blind = copy.deepcopy(model)
    blind.network.read_self.weight.data.zero_()
    assert torch.allclose(run(kind(self_conditioning=0.5), blind, count=COUNT).sum, run(kind(), blind, count=COUNT).sum)
    assert abs(plain.sum - shared.sum) > 1e-3
    assert torch.autograd.grad(shared.sum, model.network.read_self.weight)[0].abs().sum() > 0


def test_the_fixed_point_is_taught_to_the_first_pass_alone():
    model = network(self_conditioning=True)
    lone, taught = CrossEntropy(self_conditioning=1.0), CrossEntropy(self_conditioning=1.0, fixed_point=0.7)
    gap = run(taught, model, count=COUNT).sum - run(lone, model, count=COUNT).sum
    x, _ = lone.noised(model, TokenStates(TOKENS.repeat(4, 1)), Rng(1, torch.arange(COUNT), 0), 0)
    first, second = model.logits(x.x_t, x.t, x.t), TwoPass(model).logits(x.x_t, x.t, x.t)
    expected = (second.softmax(-1) * (second.log_softmax(-1) - first.log_softmax(-1))).sum()
    assert torch.allclose(gap, 0.7 * expected) and expected > 0
    of_second = torch.autograd.grad(gap, model.network.read_self.weight, allow_unused=True)[0]
    assert of_second is None or of_second.abs().max() < 1e-9


def test_fixed_points_without_second_passes_are_refused():
    with pytest.raises(ValueError, match=r"fixed_point 1\.0"):
        CrossEntropy(fixed_point=1.0)
