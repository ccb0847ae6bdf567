"""Clocks against cross-entropies known in closed form, and the learned law of the bound against the best there is."""

import pytest
import torch
from scipy import stats
from sklearn.isotonic import IsotonicRegression
from torch import nn

from flowmap.clocks import Gumbel, Monotone, Running
from flowmap.clocks.running import isotonic
from flowmap.codebook import OneHot
from flowmap.objectives.tokens import CrossEntropy, TokenStates, VariationalBound
from flowmap.path import CosinePath, LinearPath
from flowmap.rng import Rng
from flowmap.signal import LogSNR
from tests.flowmap.six_hands import SixHands, hands

PATH = LinearPath()
NODES = torch.linspace(-9, 9, 2001, dtype=torch.float64)
WEIGHTS = (-NODES.square() / 2).exp() / (-NODES.square() / 2).exp().sum()


def nats_of_a_bit(t, xi):
    """−log p of one of two one-hot tokens, alike likely: the logit of the right one is S + √(2S)·ξ, ξ ~ N(0, 1)."""
    snr = PATH.snr(t.double().clamp_min(1e-4))
    return nn.functional.softplus(-(snr + (2 * snr).sqrt() * xi))


def entropy_of_a_bit(t):
    """CE(t) of that, by quadrature."""
    return nats_of_a_bit(t[:, None], NODES) @ WEIGHTS


def taught(clock, nats, rounds, count=2000, ordinary=None):
    for n in range(rounds):
        rng = Rng(0, torch.arange(count), n)
        t = (ordinary or clock).draw(rng, "t", count)
        cost = nats(t, rng.normal("xi", count, dtype=torch.float64))
        clock.learn(clock.statistics(t, 3 * cost, torch.full_like(t, 3.0)))  # three tokens that cost as much each
    return clock


def drawn(law, count=3000):
    return law.draw(Rng(77, torch.arange(count)), "t", count).double()


@pytest.fixture(scope="module")
def running():
    return taught(Running(uniform=0.0, decay=0.99), nats_of_a_bit, 300)


def test_the_cross_entropy_of_a_bit_is_that_of_its_posterior():
    t = torch.tensor([0.2, 0.5, 0.8])
    codebook, n = OneHot(2).double(), 100_000
    eps = torch.randn(n, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_0 = codebook.encode(torch.zeros(n, 1, dtype=torch.long))
    for at, expected in zip(t, entropy_of_a_bit(t), strict=True):
        now = at.double().expand(n)
        z = codebook.prior_logits(PATH.noise(x_0, eps, now), PATH.alpha(now), PATH.sigma(now))
        nats = -z.log_softmax(-1)[..., 0]
        assert float(nats.mean()) == pytest.approx(float(expected), abs=4 * float(nats.std()) / n**0.5)


def test_a_clock_that_has_heard_nothing_is_uniform():
    assert stats.kstest(drawn(Running()).numpy(), "uniform").pvalue > 1e-3
    told = Running()
    told.learn(told.statistics(torch.zeros(0), torch.zeros(0), torch.zeros(0)))
    assert torch.allclose(told.shares, Running().shares)


def test_where_a_running_clock_looks_the_cross_entropy_falls_evenly(running):
    top = entropy_of_a_bit(torch.ones(1))
    assert stats.kstest((entropy_of_a_bit(drawn(running)) / top).numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest((entropy_of_a_bit(drawn(Running())) / top).numpy(), "uniform").pvalue < 1e-20


def test_a_running_clock_knows_the_cross_entropy_itself(running):
    middles = running.times[1:-1]
    assert (running.cross_entropy() - entropy_of_a_bit(middles)).abs().max() < 0.02
    assert (running.cross_entropy().diff() >= -1e-12).all()


def test_a_share_of_the_draws_is_even_so_that_a_clock_hears_of_every_time():
    clock = taught(Running(), nats_of_a_bit, 100)
    fall = (entropy_of_a_bit(clock.times) / entropy_of_a_bit(torch.ones(1))).numpy()
    mixed = 0.9 * fall + 0.1 * clock.times.numpy()
    assert abs(clock.shares.numpy() - mixed).max() < 0.02
    assert (clock.shares.diff() >= 0.099 * clock.times.diff()).all()


def test_fitted_offline_on_evenly_spread_times_it_is_the_same_clock(running):
    offline = taught(Running(uniform=0.0), nats_of_a_bit, 1, count=400_000, ordinary=Running())
    assert (offline.shares - running.shares).abs().max() < 0.03


def test_old_news_is_forgotten():
    clock = Running(decay=0.5)
    taught(clock, lambda t, _: (t > 0.2).double(), 3)
    taught(clock, lambda t, _: (t > 0.7).double(), 40)
    t = drawn(clock)
    assert ((t - 0.7).abs() < 0.05).double().mean() > 0.85 and ((t - 0.2).abs() < 0.05).double().mean() < 0.05


@pytest.mark.parametrize("seed", range(5))
def test_isotonic_regression_is_sklearns(seed):
    g = torch.Generator().manual_seed(seed)
    values = torch.linspace(0, 1, 40).double() + torch.randn(40, dtype=torch.float64, generator=g)
    weights = torch.rand(40, dtype=torch.float64, generator=g) + 0.1
    expected = IsotonicRegression().fit_transform(range(40), values.numpy(), sample_weight=weights.numpy())
    assert torch.allclose(isotonic(values, weights), torch.from_numpy(expected))


@pytest.mark.parametrize("clock", [Running(), Gumbel()], ids=["running", "gumbel"])
def test_what_a_clock_hears_of_slices_adds_up(clock):
    t = torch.rand(50, generator=torch.Generator().manual_seed(0))
    nats, tokens = torch.arange(50.0), torch.arange(50.0) % 3
    whole = clock.statistics(t, nats, tokens)["clock"]
    parts = sum(clock.statistics(t[rows], nats[rows], tokens[rows])["clock"] for rows in torch.arange(50).split(17))
    assert torch.allclose(whole, parts) and whole[:2].sum(1).tolist() == [1225, 49]
    assert clock.statistics(torch.tensor([0.0, 1.0]), torch.ones(2), torch.ones(2))["clock"].isfinite().all()


def test_a_clock_is_its_state(running):
    again = Running(uniform=0.0)
    again.load_state_dict(running.state_dict())
    assert torch.equal(drawn(again), drawn(running))
    assert not list(running.parameters())


# Gumbel.


def gumbel_nats(h, mu, beta, path):
    def nats(t, xi):
        s = path.snr(t.double().clamp(1e-6, 1 - 1e-6)) / path.noise_scale**2
        return h * torch.exp(-torch.exp(-(-s.log() - mu) / beta)) * (1 + 0.5 * xi)  # noise as large as a loss has

    return nats


@pytest.mark.parametrize("path", [LinearPath(), CosinePath(noise_scale=0.5)], ids=repr)
@pytest.mark.parametrize("h, mu, beta", [(2.0, -1.5, 0.7), (6.0, 3.0, 1.6), (0.5, -6.0, 2.5)])
def test_a_gumbel_clock_recovers_a_cross_entropy_of_its_form(path, h, mu, beta):
    clock = taught(Gumbel(path), gumbel_nats(h, mu, beta, path), 150)
    found = clock.law
    assert found == pytest.approx((h, mu, beta), rel=0.04, abs=0.06)
    gamma = clock.gamma(drawn(clock)).numpy()
    assert stats.kstest(gamma, stats.gumbel_r(found[1], found[2]).cdf).pvalue > 1e-3
    ce = gumbel_nats(h, mu, beta, path)(drawn(clock), 0) / h
    assert stats.kstest(ce.numpy(), lambda x: x).statistic < 0.06  # it falls evenly, up to the error of the fit


def test_gamma_grows_with_noise_and_is_in_units_of_it():
    gamma = Gumbel(LinearPath(noise_scale=2.0)).gamma(torch.tensor([0.2, 0.5, 0.9]).double())
    assert (gamma.diff() > 0).all() and float(gamma[1]) == pytest.approx(2 * torch.tensor(2.0).log().item())


def test_a_gumbel_clock_that_hears_the_same_everywhere_stays_finite():
    clock = taught(Gumbel(), lambda t, xi: torch.ones_like(xi), 60)
    t = drawn(clock)
    assert t.isfinite().all() and (t >= 0).all() and (t <= 1).all()


# In an objective.


class OneToken(nn.Module):
    """The posterior of one of V one-hot tokens, alike likely."""

    def __init__(self, size=8):
        super().__init__()
        self.path, self.codebook = LinearPath(), OneHot(size).double()

    def logits(self, x_t, t, s, context=None):
        return self.codebook.prior_logits(x_t, self.path.alpha(t), self.path.sigma(t))


def run(objective, model, n, count=256, spread=None):
    tokens = torch.arange(count)[:, None] % model.codebook.size
    return objective(model, TokenStates(tokens), rng=Rng(0, torch.arange(count), n, spread), step=n)


@pytest.mark.parametrize("make", [Running, Gumbel])
@pytest.mark.parametrize("objective", [lambda law: CrossEntropy(times=law), lambda law: VariationalBound(times=law)])
def test_an_objective_tells_its_clock_what_tokens_cost(make, objective):
    clock, model = make(), OneToken()
    objective = objective(clock)
    for n in range(4):
        loss = run(objective, model, n)
        assert loss.statistics["clock"][1].sum() == 256 and not loss.statistics["clock"].requires_grad
        objective.learn(loss.statistics)
    assert clock.told.any() and "told" in " ".join(objective.state_dict())


# The learned law of the bound.


def moments(grid, n=4000):
    """E[h] and E[h²] by λ, h = ½S‖c − ĉ‖², of the one-token problem."""
    model, rng = OneToken(), Rng(5, torch.arange(n))
    x_0 = model.codebook.encode(torch.zeros(n, 1, dtype=torch.long))
    eps, found = model.path.draw_noise(rng, "eps", x_0), []
    for lam in grid:
        t = (1 / (1 + (lam / 2).exp())).expand(n)
        g = model.codebook.expected(model.logits(model.path.noise(x_0, eps, t), t, t))
        h = lam.exp() / 2 * (x_0 - g).square().flatten(1).sum(1)
        found.append(torch.stack([h.mean(), h.square().mean()]))
    return torch.stack(found).T


T_MIN, T_MAX = 0.05, 0.98


@pytest.fixture(scope="module")
def trained():
    """Its interior alone, the ends held, so that the problem stays the same."""
    torch.manual_seed(0)
    law = Monotone(t_min=T_MIN, t_max=T_MAX)
    law.range.requires_grad_(False)
    objective, model = VariationalBound(T_MIN, T_MAX, times=law), OneToken()
    optimizer = torch.optim.Adam([law.mix, law.middle, law.steep], lr=0.02)
    for n in range(500):
        loss = run(objective, model, n)
        (loss.sum / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad()
        objective.learn(loss.statistics)
    return law


@pytest.fixture(scope="module")
def grid():
    first, last = (2 * torch.log(torch.tensor((1 - t) / t).double()) for t in (T_MAX, T_MIN))
    y = torch.linspace(0, 1, 400, dtype=torch.float64)
    lam = first + (last - first) * y
    return y, lam, moments(lam)


def test_a_monotone_law_is_one_and_its_density_is_its_slope(trained):
    for law in (Monotone(), trained):
        y = torch.linspace(0, 1, 2001, dtype=torch.float64)
        share, log_density = law.share(y).detach(), law.log_density(y).detach()
        assert (share.diff() > 0).all() and share[[0, -1]].tolist() == pytest.approx([0, 1])
        slope = (share[2:] - share[:-2]) / (y[2:] - y[:-2])
        assert torch.allclose(log_density[1:-1].exp(), slope, rtol=1e-3)
        assert torch.allclose(law.share(law.place(share)), share, atol=1e-9)
    assert (Monotone().share(y) - y).abs().max() < 0.05  # nearly even at the start


def variance(log_density, lam, mean, square):
    """Of one look: ∫E[h²]/q dλ − (∫E[h]dλ)², by λ with density q = F'/(λ_1 − λ_0)."""
    span = lam[-1] - lam[0]
    return float(torch.trapezoid(square * span / log_density.exp(), lam) - torch.trapezoid(mean, lam) ** 2)


def test_a_trained_interior_is_near_the_least_variance_there_is(trained, grid):
    y, lam, (mean, square) = grid
    best = float(torch.trapezoid(square.sqrt(), lam) ** 2 - torch.trapezoid(mean, lam) ** 2)
    even = variance(torch.zeros_like(y), lam, mean, square)
    learned = variance(trained.log_density(y).detach(), lam, mean, square)
    assert best < learned < 1.2 * best < 0.7 * even


def test_what_is_learned_changes_no_expectation(trained):
    model, means = OneToken(), {}
    for name, law in (("even", LogSNR(T_MIN, T_MAX)), ("learned", trained)):
        objective = VariationalBound(T_MIN, T_MAX, times=law)
        with torch.no_grad():
            found = torch.tensor([float(run(objective, model, 10_000 + n, 4000).sum) / 4000 for n in range(20)])
        means[name] = float(found.mean()), float(found.std()) / 20**0.5
    (a, error_a), (b, error_b) = means.values()
    assert abs(a - b) < 3 * (error_a**2 + error_b**2) ** 0.5 and error_b < error_a
    assert b == pytest.approx(torch.tensor(8.0).log().item(), abs=3 * error_b)  # and it is tight


def test_the_interiors_gradient_is_that_of_the_second_moment(grid):
    """−E[ℓ²·∂ log q] from draws, against ∂∫E[h²]/q dλ by quadrature."""
    y, lam, (_, square) = grid
    torch.manual_seed(1)
    law = Monotone(t_min=T_MIN, t_max=T_MAX, units=4)
    nn.init.normal_(law.mix)
    exact = torch.trapezoid(square * (lam[-1] - lam[0]) * (-law.log_density(y)).exp(), lam)
    expected = torch.cat(torch.autograd.grad(exact, [law.mix, law.middle, law.steep]))
    law.squares.fill_(1.0)  # the gradient as it stands
    objective, rounds = VariationalBound(T_MIN, T_MAX, times=law), []
    for n in range(40):
        loss = run(objective, OneToken(), n, 4000)
        rounds.append(torch.cat(torch.autograd.grad(loss.sum / 4000, [law.mix, law.middle, law.steep])))
    found = torch.stack(rounds)
    error = found.std(0) / 40**0.5 + 0.01 * expected.abs()  # and the grid's own
    assert ((found.mean(0) - expected).abs() < 4 * error).all()
    assert (expected.abs() > 8 * error).any()


def test_the_ends_gradient_is_that_of_the_bound():
    """At the posterior of two words, by differences on the same draws, though the network is never told of it."""
    count = 30_000

    class Listening(SixHands):
        def logits(self, x_t, t, s, context=None):
            assert not t.requires_grad and not s.requires_grad
            return super().logits(x_t, t, s, context)

    def value(law):
        batch, rng = TokenStates(hands(count)), Rng(0, torch.arange(count))
        return VariationalBound(times=law)(Listening(), batch, rng=rng, step=0).sum / count

    (found,) = torch.autograd.grad(value(law := Monotone(t_min=0.35, t_max=0.6)), law.range)
    for i in range(2):
        ends = []
        for sign in (1, -1):
            law = Monotone(t_min=0.35, t_max=0.6)
            law.range.data[i] += sign * 0.1
            with torch.no_grad():
                ends.append(float(value(law)))
        expected = (ends[0] - ends[1]) / 0.2
        assert float(found[i]) == pytest.approx(expected, abs=0.03)
        assert expected < -0.1  # a wider range bounds better where the network knows what it says


def test_a_law_that_learns_shows_no_loss_of_its_own():
    law = Monotone()
    plain = run(VariationalBound(times=law), OneToken(), 0)
    law.squares.fill_(1.0)
    assert torch.equal(run(VariationalBound(times=law), OneToken(), 0).sum, plain.sum)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="at least 2 bins"):
        Running(bins=1)
    with pytest.raises(ValueError, match="positive"):
        Gumbel(beta=0.0)
    with pytest.raises(ValueError, match="start below 0"):
        Monotone(t_min=0.6)
