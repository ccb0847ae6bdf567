import pytest
import torch

from flowmap.maps import PARAMETERISATIONS, FlowMap
from flowmap.path import CosinePath, LinearPath, expand
from flowmap.rng import Rng
from tests.flowmap.oracles import GaussianMap, Mixture, gaussian

PATHS = [LinearPath(0.5), CosinePath(0.5)]
T = torch.tensor([0.05, 0.3, 0.7, 0.999], dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS, ids=["linear", "cosine"])
def test_rates_and_inverses_agree_with_their_functions(path):
    t = T.clone().requires_grad_()
    (alpha_rate,) = torch.autograd.grad(path.alpha(t).sum(), t)
    (sigma_rate,) = torch.autograd.grad(path.sigma(t).sum(), t)
    (fall,) = torch.autograd.grad(-path.log_snr(t).sum(), t)
    assert torch.allclose(alpha_rate, path.alpha_rate(T), rtol=1e-12)
    assert torch.allclose(sigma_rate, path.sigma_rate(T), rtol=1e-12)
    assert torch.allclose(fall, path.log_snr_fall(T), rtol=1e-9)
    assert torch.allclose(path.from_ratio(path.ratio(T)), T, rtol=1e-12)
    assert torch.allclose(path.log_snr(T).exp(), path.snr(T))


@pytest.mark.parametrize("path", PATHS, ids=["linear", "cosine"])
def test_a_secant_holds_both_ends_and_the_jump_is_ddims(path):
    x, g = torch.randn(2, 4, 3, dtype=torch.float64)
    s = T / 3
    v = path.secant(x, g, T)
    data, noise = path.ends(x, v, T)
    assert torch.allclose(data, g) and torch.allclose(noise - data, v)
    assert torch.allclose(path.noise(data, noise, T), x)
    a, b = path.alpha(s) - path.sigma(s) * path.alpha(T) / path.sigma(T), path.sigma(s) / path.sigma(T)
    expected = expand(a, x) * g + expand(b, x) * x
    assert torch.allclose(path.jump(x, g, T, s), expected)
    assert torch.allclose(path.move(x, v, T, s), expected)
    to_x, to_v = path.coefficients(T, s)
    assert torch.allclose(expand(to_x, x) * x + expand(to_v, x) * v, expected)
    assert torch.equal(LinearPath().move(x, v, T, T), x)
    assert torch.allclose(path.move(x, v, T, T), x)


@pytest.mark.parametrize("path", PATHS, ids=["linear", "cosine"])
def test_jumps_with_one_direction_compose(path):
    x, g = torch.randn(2, 4, 3, dtype=torch.float64)
    middle, s = T * 0.8, T * 0.2
    stepped = path.jump(path.jump(x, g, T, middle), g, middle, s)
    assert torch.allclose(stepped, path.jump(x, g, T, s))


@pytest.mark.parametrize("path", PATHS, ids=["linear", "cosine"])
def test_noise_has_its_scale_and_the_flow_is_the_derivative_of_the_jump(path):
    x = torch.zeros(4, 20_000, dtype=torch.float64)
    assert path.draw_noise(Rng(0, torch.arange(4)), "eps", x).std() == pytest.approx(0.5, rel=0.01)
    x, v = torch.randn(2, 4, 3, dtype=torch.float64)
    step = 1e-6
    moved = (path.move(x, v, T, T + step) - path.move(x, v, T, T - step)) / (2 * step)
    assert torch.allclose(moved, path.ode(x, v, T), atol=1e-6)


@pytest.mark.parametrize("name, parts", [("euler-fm", (0.0, 0.5)), ("simple-edm", None), ("endpoint", None)])
def test_parameterisations_are_the_tables(name, parts):
    a, b = PARAMETERISATIONS[name](1 - T, T, 0.5, 0.5)
    root = ((1 - T) ** 2 + T**2).sqrt()
    expected = {
        "euler-fm": (0 * T, 0 * T + 0.5),
        "simple-edm": ((2 * T - 1) / root**2, 0.5 / root),
        "endpoint": (1 / T, -1 / T),
    }[name]
    assert torch.allclose(a, expected[0]) and torch.allclose(b, expected[1])
    c_in = 1 / ((1 - T) ** 2 * 0.25 + T**2).sqrt()
    unit = PARAMETERISATIONS["simple-edm"](1 - T, T, 0.5, 1.0)
    assert torch.allclose(unit[0], (T - (1 - T) * 0.25) * c_in**2) and torch.allclose(unit[1], 0.5 * c_in)


@pytest.mark.parametrize("path", PATHS, ids=["linear", "cosine"])
def test_simple_edm_leaves_a_regression_target_of_unit_variance(path):
    x_0, eps = 0.5 * torch.randn(2, 200_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for time in (0.2, 0.6, 0.95):
        t = torch.full((len(x_0),), time, dtype=torch.float64)
        a, b = PARAMETERISATIONS["simple-edm"](path.alpha(t), path.sigma(t), 0.5, 0.5)
        target = ((eps - x_0) - expand(a, x_0) * path.noise(x_0, eps, t)) / expand(b, x_0)
        assert target.var() == pytest.approx(1, abs=0.02) and abs(target.mean()) < 0.01


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(5, 3, dtype=torch.float64)

    def forward(self, x, t, s, context=None, self_cond=None):
        return self.layer(torch.cat([x, t[:, None], s[:, None]], -1))


@pytest.mark.parametrize("path", PATHS, ids=["linear", "cosine"])
@pytest.mark.parametrize("name", PARAMETERISATIONS)
def test_a_map_is_the_identity_at_s_equals_t_and_its_parts_agree(path, name):
    model = FlowMap(Net(), path, name)
    x, s = torch.randn(4, 3, dtype=torch.float64), T / 2
    assert torch.allclose(model.jump(x, T, T), x)
    assert torch.allclose(path.jump(x, model.endpoint(x, T, s), T, s), model.jump(x, T, s))
    h = 1e-4
    network = model.network.layer
    before = model.jump(x, T, s)
    with torch.no_grad():
        network.bias += h
    moved = ((model.jump(x, T, s) - before) / h).abs()[:, 0]
    assert torch.allclose(moved, model.output_scale(T, s), rtol=1e-6)


def test_the_gaussian_map_is_exact_and_a_semigroup():
    oracle, x = GaussianMap(), gaussian(4, 3, 0.0, 1.0)
    s, u = T * 0.2, T * 0.6
    ratio = (oracle.variance(s) / oracle.variance(T)).sqrt()
    expected = (1 - s)[:, None] * oracle.mu + ratio[:, None] * (x - (1 - T)[:, None] * oracle.mu)
    assert torch.allclose(oracle.jump(x, T, s), expected)
    assert torch.allclose(oracle.jump(oracle.jump(x, T, u), u, s), oracle.jump(x, T, s))
    assert not torch.allclose(GaussianMap((0.1, 0, 0, 0)).jump(x, T, s), expected)


def test_the_gaussian_map_integrates_the_local_velocity():
    single = Mixture((1.0,), (0.7,), (0.4,))
    x = gaussian(5, 4, 0.0, 1.0)
    t, s = (torch.full((5,), time, dtype=torch.float64) for time in (0.9, 0.2))
    assert torch.allclose(single.flow(x, 0.9, 0.2), GaussianMap().jump(x, t, s), atol=1e-7)


def test_identities_of_the_exact_map_of_a_mixture():
    """math.md §2 against scipy: semigroup of endpoints, Lagrangian, Eulerian, MeanFlow."""
    mixture, x = Mixture((0.4, 0.6), (-1.0, 1.0), (0.3, 0.2)), gaussian(6, 5, 0.0, 1.0)
    t, u, s, h = 0.8, 0.5, 0.2, 1e-3

    def g(t, s, x):  # X = (s/t)x + (1−s/t)g
        return (mixture.flow(x, t, s) - s / t * x) / (1 - s / t)

    a = s * (t - u) / (u * (t - s))
    assert torch.allclose(g(t, s, x), a * g(t, u, x) + (1 - a) * g(u, s, mixture.flow(x, t, u)), atol=1e-6)
    local = lambda x, t: mixture.posterior(x, torch.full((len(x),), t, dtype=torch.float64))  # noqa: E731
    slope = (g(t, s + h, x) - g(t, s - h, x)) / (2 * h)
    assert torch.allclose(g(t, s, x), local(mixture.flow(x, t, s), s) + s * (t - s) / t * slope, atol=1e-4)
    ahead, behind = (g(t + k, s, mixture.flow(x, t, t + k)) for k in (h, -h))
    kappa = s / (t * (t - s))
    assert torch.allclose((ahead - behind) / (2 * h), -kappa * (g(t, s, x) - local(x, t)), atol=1e-4)
    average = lambda t, x: (mixture.flow(x, t, s) - x) / (s - t)  # noqa: E731
    total = (average(t + h, mixture.flow(x, t, t + h)) - average(t - h, mixture.flow(x, t, t - h))) / (2 * h)
    velocity = (x - local(x, t)) / t
    assert torch.allclose(average(t, x), velocity - (t - s) * total, atol=1e-4)
