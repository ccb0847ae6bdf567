"""From a token back to the noise that picks it."""

import pytest
import torch
from scipy import stats

from flowmap.warp import Warp, inverse_cdf, pick
from mtp.decoding.slices import left_over, slice_of, within


def laws(rows=4000, seed=0):
    return (2 * torch.randn(rows, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).log_softmax(
        -1
    )


def test_every_point_of_a_slice_picks_its_token_and_slices_fill_the_interval():
    p, g = laws().exp(), torch.Generator().manual_seed(1)
    token, share = torch.randint(7, (4000,), generator=g), torch.rand(4000, generator=g, dtype=torch.float64)
    assert torch.equal(inverse_cdf(p, within(p, token, share)), token)
    low, width = slice_of(p[:, None].expand(-1, 7, -1), torch.arange(7).expand(4000, -1))
    assert torch.allclose(low[:, 1:], (low + width)[:, :-1]) and torch.allclose(width.sum(1), torch.ones(4000).double())
    assert not low[:, 0].any()


def test_what_a_uniform_leaves_over_leads_back_to_it():
    log_p, u = laws(), torch.rand(4000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    token, _ = pick(log_p, u)
    assert torch.allclose(within(log_p.exp(), token, left_over(log_p, u, token)), u)


@pytest.mark.parametrize("kind", ["uniforms", "gumbels"])
@pytest.mark.parametrize("warp", [Warp(), Warp(0.7, 0.8), Warp(0.0)])
def test_what_is_left_over_is_uniform_whatever_the_token(kind, warp):
    n, g = 40_000, torch.Generator().manual_seed(3)
    log_p = warp.log_prob(laws(1).expand(n, -1))
    uniform = torch.rand(n, 7, generator=g, dtype=torch.float64)
    noise = uniform[:, 0] if kind == "uniforms" else -(-uniform.log()).log()
    token, _ = pick(log_p, noise)
    left = left_over(log_p, noise, token)
    for x in token.unique():
        assert stats.kstest(left[token == x], "uniform").pvalue > 1e-3
