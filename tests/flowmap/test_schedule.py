"""The decode-error law of time against counts of decoded noise."""

import pytest
import torch
from scipy import stats

from flowmap.path import CosinePath, LinearPath
from flowmap.rng import Rng
from flowmap.schedule import DecodeError

T = torch.tensor([0.05, 0.2, 0.4, 0.6, 0.9])


@pytest.mark.parametrize("size", [2, 27, 300])
@pytest.mark.parametrize("path", [LinearPath(), CosinePath(noise_scale=0.5)])
def test_progress_is_the_share_of_noised_tokens_that_argmax_finds(size, path):
    n = 20_000
    eps = path.noise_scale * torch.randn(n, size, generator=torch.Generator().manual_seed(0))
    for t, tau in zip(T, DecodeError(size, path).progress(T).tolist(), strict=True):
        x = path.sigma(t) * eps
        x[:, 0] += path.alpha(t)
        found = (x.argmax(1) == 0).double().mean().item()
        assert found == pytest.approx((tau * (size - 1) + 1) / size, abs=4 * (0.25 / n) ** 0.5)


def test_two_tokens_are_known_in_closed_form():
    """Φ(α/(σ√2)): the difference of two noises."""
    q = stats.norm.cdf(((1 - T) / T / 2**0.5).numpy())
    torch.testing.assert_close(DecodeError(2).progress(T), torch.tensor(2 * q - 1), rtol=1e-6, atol=1e-9)


def test_drawn_times_make_progress_uniform_and_a_share_of_them_is_even():
    law = DecodeError(64)
    n, rng = 20_000, Rng(1, torch.arange(20_000))
    tau = law.progress(law.draw(rng, "t", n))
    assert stats.kstest(tau.numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(law.draw(rng, "t", n).numpy(), "uniform").pvalue < 1e-10
    mixed = DecodeError(64, uniform=0.25, low=0.1).draw(rng, "t", n)
    assert mixed.min() >= 0.1 and mixed.max() <= 1
    late = law.time_at(torch.tensor([0.01])).item()  # past it nothing but the even draws are expected
    assert (mixed > late).double().mean().item() == pytest.approx(0.25 * (1 - late) / 0.9 + 0.75 * 0.01, abs=0.01)


@pytest.mark.parametrize("size", [15, 2048, 152_000])
def test_time_is_the_inverse_of_progress_at_any_size(size):
    law = DecodeError(size)
    tau = torch.linspace(0.002, 0.998, 50, dtype=torch.float64)
    torch.testing.assert_close(law.progress(law.time_at(tau)), tau, atol=2e-5, rtol=1e-4)


def test_one_token_is_refused():
    with pytest.raises(ValueError, match="2 at least"):
        DecodeError(1)
