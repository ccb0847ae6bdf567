"""Laws of time as images of uniforms, and uniforms that are even over a global batch."""

import pytest
import torch
from scipy import stats

from flowmap.objectives.tokens import VariationalBound
from flowmap.path import CosinePath, LinearPath
from flowmap.rng import Rng
from flowmap.schedule import DecodeError
from flowmap.signal import Cut, LogSNR
from flowmap.times import LogitNormal, Uniform, interpolate, ordered_pair

LAWS = {
    "uniform": (Uniform(0.1, 0.9), lambda t: (t - 0.1) / 0.8),
    "logit-normal": (LogitNormal(-1.5, 0.8), lambda t: stats.norm.cdf((torch.logit(t) + 1.5) / 0.8)),
    "decode-error": (DecodeError(16), lambda t: 1 - DecodeError(16).progress(t)),
    "decode-error, mixed": (DecodeError(16, uniform=0.1), lambda t: 0.9 * (1 - DecodeError(16).progress(t)) + 0.1 * t),
}
every = pytest.mark.parametrize("law, cdf", LAWS.values(), ids=LAWS.keys())


def spread(size, n=0, seed=0):
    return Rng(seed, torch.arange(size), n, size)


def star_discrepancy(u):
    u, n = torch.as_tensor(u).double().sort().values, len(u)
    i = torch.arange(1, n + 1) / n
    return float(torch.maximum(i - u, u - i + 1 / n).max())


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_places_of_a_global_batch_are_an_even_grid(size):
    for n in range(5):
        u = spread(size, n).place("t", size)
        assert (u >= 0).all() and (u < 1).all()
        assert star_discrepancy(u) <= 1 / size + 1e-12
        assert torch.allclose(u.sort().values.diff(), torch.tensor(1 / size).double())
    if size > 10:
        assert star_discrepancy(Rng(0, torch.arange(size)).place("t", size)) > 2 / size  # not even by chance


def test_every_samples_place_is_uniform_over_batches():
    found = torch.stack([spread(6, n).place("t", 6) for n in range(3000)])
    for j in (0, 3, 5):
        assert stats.kstest(found[:, j].numpy(), "uniform").pvalue > 1e-3


def test_two_names_are_independent_and_so_are_batches():
    """Were both orders the same, t − s would be one number for a whole batch."""
    t, s = (torch.cat([spread(64, n).place(name, 64) for n in range(100)]) for name in "ts")
    table = torch.bincount((t * 5).long() * 5 + (s * 5).long(), minlength=25).reshape(5, 5)
    assert stats.chi2_contingency(table.numpy()).pvalue > 1e-3
    far, near = ordered_pair(Uniform(), spread(64), 64)
    assert (far >= near).all() and (far - near).std() > 0.1


def test_slices_and_groups_draw_what_the_whole_batch_draws():
    whole = spread(48, 5).place("t", 48)
    for rows in (torch.arange(0, 16), torch.arange(16, 48), torch.tensor([40, 3])):
        assert torch.equal(Rng(0, rows, 5, 48).place("t", len(rows)), whole[rows])
    groups = Rng(0, torch.arange(24, 48), 5, 48).groups(4)
    assert torch.equal(groups.place("t", 6), spread(12, 5).place("t", 12)[6:])


def test_the_variance_of_a_mean_falls_from_one_over_b_to_one_over_b_squared():
    """Of t²: 4/45/B for independent times, (f(1) − f(0))²/(12·B²) for a grid at a random shift."""
    size, n = 32, 2000
    for even, expected in ((False, 4 / 45 / size), (True, 1 / (12 * size**2))):
        means = [
            Rng(0, torch.arange(size), k, size if even else None).place("t", size).square().mean() for k in range(n)
        ]
        means = torch.stack(means)
        assert float(means.var()) == pytest.approx(expected, rel=0.15)  # the deviation of a variance is √(2/n) = 3%
        assert float(means.mean()) == pytest.approx(1 / 3, abs=4 * (expected / n) ** 0.5)


@every
def test_a_law_is_the_image_of_uniforms_and_evenly_spread_ones_stay_so(law, cdf):
    u = torch.linspace(0.001, 0.999, 500, dtype=torch.float64)
    assert torch.allclose(torch.as_tensor(cdf(law.time_of(u))).double(), u, atol=2e-5)
    assert torch.allclose(law.share_below(law.time_of(u)), u, atol=1e-6)
    t = law.draw(Rng(0, torch.arange(4000)), "t", 4000)
    assert t.dtype == torch.float32 and stats.kstest(torch.as_tensor(cdf(t.double())).numpy(), "uniform").pvalue > 1e-3
    assert star_discrepancy(cdf(law.draw(spread(200), "t", 200).double())) < 1 / 200 + 1e-4


def test_places_that_are_no_places_of_one_global_batch_are_refused():
    for rng in (Rng(0, torch.arange(4), 0, 3), Rng(0, None, 0, 3), Rng(0, torch.arange(2), torch.arange(2), 2)):
        with pytest.raises(ValueError, match="one global batch"):
            rng.place("t", 4)


def test_a_table_is_read_by_straight_lines_and_level_beyond():
    xs, ys = torch.tensor([0.0, 1.0, 3.0]).double(), torch.tensor([5.0, 6.0, 2.0]).double()
    assert interpolate(torch.tensor([-1.0, 0.5, 2.0, 9.0]).double(), xs, ys).tolist() == [5, 5.5, 4, 2]


# The bound looks by any law, without bias.


@every
@pytest.mark.parametrize("path", [LinearPath(noise_scale=0.5), CosinePath()], ids=repr)
def test_any_law_estimates_the_integral_over_the_signal_to_noise_ratio(law, cdf, path):
    """½∫ e^{−S} dS, known."""
    if law.time_of(torch.ones(1).double()) < 1:
        law = Uniform()  # which leaves nothing between the ends out
    objective = VariationalBound(0.2, 0.95, times=law)
    t, weight = objective.draw(path, Rng(0, torch.arange(40_000)), 40_000)
    found = weight * (-path.snr(t) / path.noise_scale**2).exp()
    first, last = (path.snr(torch.tensor(end).double()) / path.noise_scale**2 for end in (0.95, 0.2))
    expected = ((-first).exp() - (-last).exp()) / 2
    assert float(found.mean()) == pytest.approx(float(expected), abs=4 * float(found.std()) / 200)
    assert (t >= 0.2).all() and (t <= 0.95).all()


def test_the_slope_of_the_signal_to_noise_ratio():
    for path in (LinearPath(), CosinePath(noise_scale=2.0)):
        t = torch.tensor([0.05, 0.4, 0.9, 1.0], dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(path.snr(t).sum(), t)
        assert torch.allclose(path.snr_fall(t), -slope, atol=1e-9)


def test_the_estimate_of_a_batch_varies_less_where_its_times_are_even():
    law, path, size = LogSNR(0.1, 0.9), LinearPath(), 32
    variances = []
    for even in (None, size):
        batches = [law.draw(path, Rng(0, torch.arange(size), n, even).place("t", size)) for n in range(500)]
        variances.append(float(torch.stack([(b.weight * (-path.snr(b.t)).exp()).mean() for b in batches]).var()))
    assert variances[1] < variances[0] / size


def test_ends_that_leave_no_range_are_refused():
    for wrong in ((0.0, 0.5), (0.6, 0.5), (0.5, 1.5)):
        with pytest.raises(ValueError, match="0 < t_min"):
            Cut(Uniform(), *wrong)
    with pytest.raises(ValueError, match="scale"):
        LogSNR(0.1, 0.9, scale=0.5)
