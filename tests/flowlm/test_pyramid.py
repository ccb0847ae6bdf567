"""Tokens that start apart: their times, and on an exact posterior the law that comes out, in any order."""

import pytest
import torch
from scipy import stats

from flowlm import Known
from flowlm.pyramid import ORDERS, pyramid_times, ranks
from flowlm.writing import nothing, write
from flowmap.rng import Rng
from tests.flowlm.test_blocks import N, V, build
from tests.flowmap.each_token import TwoTimes
from tests.flowmap.six_hands import TOKENS, WORDS

HANDS = TOKENS[:, 0] * len(WORDS) + TOKENS[:, 1]


def counts(rows, seed=0, **how):
    """How often each pair of words was written, (V²,)."""
    like = torch.zeros(rows, 2, len(WORDS), dtype=torch.float64)
    with torch.no_grad():
        out = write(TwoTimes(), like, Rng(seed, torch.arange(rows)), sampler="ddim", **how)
    return torch.bincount(out.tokens[:, 0] * len(WORDS) + out.tokens[:, 1], minlength=len(WORDS) ** 2).double()


def variation(seen):
    truth = torch.zeros_like(seen)
    truth[HANDS] = 1 / 6
    return float((seen / seen.sum() - truth).abs().sum() / 2)


def test_times_of_a_pyramid():
    rank = torch.tensor([[0, 1, 2]])
    whole, apart, one = (pyramid_times(rank, 2, delay)[:, 0] for delay in (0, 1, 2))
    assert whole.tolist() == [[1, 1, 1], [0.5] * 3, [0, 0, 0]]
    assert apart.tolist() == [[1, 1, 1], [0.5, 1, 1], [0, 0.5, 1], [0, 0, 0.5], [0, 0, 0]]
    assert len(one) == 7 and ((one > 0) & (one < 1)).sum(1).max() == 1  # one token after the other


def test_ranks_count_what_is_open_in_every_order():
    open_ = torch.tensor([[False, True, True, False, True]]).expand(200, 5)
    rng = Rng(0, torch.arange(200))
    found = {order: ranks(open_, order, rng)[:, [1, 2, 4]] for order in ORDERS}
    assert (found["left-to-right"] == torch.tensor([0, 1, 2])).all()
    assert (found["right-to-left"] == torch.tensor([2, 1, 0])).all()
    assert len({tuple(row) for row in found["random"].tolist()}) == 6
    assert (found["random"].sort(1).values == torch.arange(3)).all()


@pytest.mark.parametrize("delay", ["none", "half", "whole"])
@pytest.mark.parametrize("order", ["left-to-right", "random"])
def test_the_exact_posterior_comes_to_the_law_as_steps_grow(delay, order):
    """Total variation falls with the steps; at the end χ² does not tell the draws from the law."""
    found = []
    for steps, rows in ((2, 1000), (64, 4000)):
        apart = {"none": 0, "half": steps // 2, "whole": steps}[delay]
        found.append(counts(rows, steps=steps, delay=apart, order=order))
    few, many = (variation(seen) for seen in found)
    assert many < 0.03  # 0.014 is what draws from the law show
    assert delay != "none" or few > 0.1
    seen = found[1][HANDS]
    assert found[1].sum() - seen.sum() < 0.02 * 4000  # a jump from t = 1/n rounds off what is left
    assert stats.chisquare(seen.numpy(), (seen.sum() / 6).expand(6).numpy()).pvalue > 1e-3


def test_one_after_the_other_is_right_in_few_steps_where_all_at_once_is_not():
    """At delay = n a token is drawn given what was drawn: no pair of words is ever wrong."""
    assert counts(1000, steps=2, delay=2)[HANDS].sum() == 1000
    assert counts(1000, steps=2)[HANDS].sum() < 900


@pytest.mark.parametrize("order", ORDERS)
def test_what_is_known_stays_and_calls_are_counted(order):
    model, rows, calls = build(noise="token"), 6, []
    at = torch.arange(N).expand(rows, N) % 4 == 1
    known = Known(torch.full((rows, N), 3), at)
    hook = model.map.network.register_forward_hook(lambda *_: calls.append(1))
    out = model.write(known, Rng(0, torch.arange(rows)), steps=3, delay=2, order=order)
    hook.remove()
    assert out.nfe == len(calls) == 3 + 2 * (9 - 1)  # nine tokens are open
    assert (out.tokens[at] == 3).all() and (out.log_q[at] == 0).all() and (out.log_q[~at] < 0).all()
    again = model.write(known[2:4], Rng(0, torch.arange(2, 4)), steps=3, delay=2, order=order)
    assert torch.equal(again.tokens, out.tokens[2:4])
    assert out.tokens[~at].max() < V


def test_inside_blocks_too():
    model = build(noise="token", block_lengths=[4])
    out = model.write(nothing(torch.zeros(5, N)), Rng(0, torch.arange(5)), steps=3, delay=1)
    assert out.nfe == 3 * (3 + 3)


@torch.no_grad()
def test_a_causal_network_hears_nothing_from_behind():
    model = build(noise="token", causal=True)
    x, t = torch.randn(4, N, 4), torch.rand(4, N) * 0.8 + 0.1
    base = model(x, t, t)
    changed, later = x.clone(), t.clone()
    changed[:, 7:] += 2
    later[:, 7:] = 0.95
    moved = (model(changed, later, later) - base).abs().amax(-1)
    assert (moved[:, :7] == 0).all() and (moved[:, 7:] > 0).all()
    known = Known(torch.ones(4, N, dtype=torch.long), torch.arange(N).expand(4, N) >= 7)
    torch.testing.assert_close(model(x, t, t, known)[:, :7], base[:, :7], atol=1e-5, rtol=1e-5)
