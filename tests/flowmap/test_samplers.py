from functools import partial

import pytest
import torch

from flowmap.maps import FlowMap
from flowmap.path import CosinePath
from flowmap.rng import Rng
from flowmap.samplers import (
    Guided,
    ddim,
    ddpm,
    euler,
    heun,
    jacobi,
    picard,
    pushforward,
    restart,
    shortcut,
    uniform_times,
)
from tests.flowmap.oracles import GaussianMap, gaussian

N = 50_000


def noise(count=N, seed=9):
    return gaussian(count, seed, 0.0, 1.0)


def moments(x):
    return float(x.mean()), float(x.std())


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_pushforward_of_the_exact_map_is_exact_in_any_number_of_steps(steps):
    oracle = GaussianMap()
    out = pushforward(Guided(oracle), noise(1000), uniform_times(steps))
    expected = oracle.jump(noise(1000), torch.ones(1000, dtype=torch.float64), torch.zeros(1000, dtype=torch.float64))
    assert torch.allclose(out.x, expected) and out.nfe == out.rounds == steps


def test_shortcut_models_take_their_shortest_steps_by_the_local_velocity():
    told = []

    class Listening(GaussianMap):
        def velocity(self, x_t, t, s, context=None):
            told.append(float(t[0] - s[0]))
            return super().velocity(x_t, t, s, context)

    shortcut(
        Guided(Listening()), noise(4), torch.tensor([1.0, 0.5, 0.5 - 1 / 64, 0.5 - 3 / 128, 0.25], dtype=torch.float64)
    )
    assert told == [0.5, 1 / 64, 0.0, 0.25 - 3 / 128]  # steps of 1/2, 1/64, 1/128 and the rest


@pytest.mark.parametrize("sampler, order, calls", [(euler, 1, 1), (heun, 2, 2)])
def test_solvers_converge_at_their_order(sampler, order, calls):
    oracle, x = GaussianMap(), noise(500)
    exact = pushforward(Guided(oracle), x, uniform_times(1, 0.95, 0.05)).x
    errors = []
    for steps in (20, 40):
        out = sampler(Guided(oracle), x, uniform_times(steps, 0.95, 0.05))
        assert out.nfe == calls * steps
        errors.append(float((out.x - exact).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.15)


def test_ddim_is_euler_on_the_linear_path():
    oracle, x = GaussianMap(), noise(100)
    times = uniform_times(6)
    assert torch.allclose(ddim(Guided(oracle), x, times).x, euler(Guided(oracle), x, times).x)


@pytest.mark.parametrize("sampler", [restart, partial(restart, renoise=0.7), partial(restart, renoise=0.2), ddpm])
def test_stochastic_samplers_keep_the_law(sampler):
    steps = 200 if sampler is ddpm else 4
    out = sampler(Guided(GaussianMap()), noise(), uniform_times(steps), Rng(0, torch.arange(N)))
    mean, deviation = moments(out.x)
    assert mean == pytest.approx(0.7, abs=4 * 0.4 / N**0.5 + 0.005)
    assert deviation == pytest.approx(0.4, rel=0.02)  # of 200 steps


def test_noise_that_is_kept_is_the_same_and_noise_that_is_fresh_is_not():
    """renoise γ: of a point mass, whose states are all noise, √(1−γ²) of it comes from the state before."""
    times, rng = torch.tensor([1.0, 0.5, 0.25]), Rng(0, torch.arange(N))
    x = noise()
    for gamma in (0.0001, 0.6, 1.0):
        out = restart(Guided(GaussianMap(mu=0.7, tau=1e-6, nu=1.0)), x, times, rng, renoise=gamma)
        left = (out.x - 0.75 * 0.7) / 0.25
        assert left.std().item() == pytest.approx(1, rel=0.02)
        assert (left * x).mean().item() == pytest.approx(1 - gamma**2, abs=0.03)


def test_ancestral_sampling_on_the_cosine_path():
    class Posterior:
        path = CosinePath()

        def velocity(self, x, t, s, context=None):
            t = t[:, None]
            alpha, sigma = self.path.alpha(t), self.path.sigma(t)
            g = 0.7 + alpha * 0.16 / (alpha**2 * 0.16 + sigma**2) * (x - alpha * 0.7)
            return self.path.secant(x, g, t[:, 0])

    out = ddpm(Guided(Posterior()), noise(), uniform_times(200), Rng(0, torch.arange(N)))
    assert moments(out.x)[0] == pytest.approx(0.7, abs=0.02) and moments(out.x)[1] == pytest.approx(0.4, rel=0.02)


@pytest.mark.parametrize("guess", [True, False])
def test_parallel_sweeps_end_at_the_serial_answer(guess):
    model, x = GaussianMap((0.2, -0.3, 0.2, 0.1)), noise(50)
    times = uniform_times(6)
    serial = pushforward(Guided(model), x, times).x
    out = jacobi(Guided(model), x, times, guess=guess)
    assert torch.allclose(out.x, serial)
    assert torch.allclose(picard(Guided(model), x, times, guess=guess).x, ddim(Guided(model), x, times).x)


def test_a_first_guess_of_the_exact_map_needs_one_round():
    oracle, x = GaussianMap(), noise(50)
    out = jacobi(Guided(oracle), x, uniform_times(8), sweeps=0)
    assert torch.allclose(out.x, pushforward(Guided(oracle), x, uniform_times(8)).x)
    assert out.rounds == 1 and out.nfe == 8
    early = jacobi(Guided(oracle), x, uniform_times(8), tolerance=1e-9)
    assert early.rounds == 2


class Labelled(torch.nn.Module):
    def forward(self, x, t, s, context=None):
        return x * 0 + context[:, None]


def test_guidance_is_linear_in_the_condition_and_counts_both_calls():
    model = FlowMap(Labelled(), parameterisation="euler-fm", data_scale=1.0)
    with_label, without = torch.full((3,), 2.0), torch.full((3,), 0.5)
    guided = Guided(model, with_label, without, guidance=3.0)
    out = pushforward(guided, torch.zeros(3, 1), uniform_times(2))
    assert torch.allclose(out.x, torch.full((3, 1), -(0.5 + 3 * 1.5))) and out.nfe == 4
    with pytest.raises(ValueError, match="without its condition"):
        Guided(model, with_label, guidance=2.0)


@pytest.mark.parametrize("draw", [pushforward, jacobi, picard])
def test_times_must_fall(draw):
    with pytest.raises(ValueError, match="must fall"):
        draw(Guided(GaussianMap()), noise(3), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("draw", [jacobi, picard])
def test_no_sweeps_leave_the_first_guess(draw):
    model, x, times = GaussianMap(), noise(3), uniform_times(4)
    guess = draw(Guided(model), x, times, sweeps=0).x
    assert torch.allclose(guess, pushforward(Guided(model), x, uniform_times(1)).x)
    with pytest.raises(ValueError, match="0 sweeps without a first guess"):
        draw(Guided(model), x, times, sweeps=0, guess=False)


def test_half_precision_noise_is_stepped_in_full():
    assert pushforward(Guided(GaussianMap()), noise(3).bfloat16(), uniform_times(2)).x.dtype == torch.float32
