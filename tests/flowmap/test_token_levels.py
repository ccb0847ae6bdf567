"""Times of their own for parts of a sample: drawn for each, addressed by each, and right at the exact posterior."""

import math

import pytest
import torch

from flowmap.objectives.tokens import TOKEN_OBJECTIVES, CrossEntropy, ProgressiveKL, TokenStates
from flowmap.rng import Rng
from flowmap.times import TimeLaw, Uniform
from tests.flowmap.each_token import TwoTimes
from tests.flowmap.six_hands import ENTROPY, TOKENS, WORDS, exact_flow, hands

EACH = torch.arange(2)
COUNT = 3000


class Ends(TimeLaw):
    """Clean or pure noise, a coin's toss each."""

    def time_of(self, u):
        return torch.where(u < 0.5, 0.02, 1.0)


def entropy(tokens):
    share = torch.bincount(tokens).double() / len(tokens)
    return float(torch.special.entr(share).sum())


def batch(count=COUNT, levels=EACH):
    return TokenStates(hands(count), levels=None if levels is None else levels.expand(count, 2))


def mean(objective, states, n=0):
    loss = objective(TwoTimes(), states, rng=Rng(1, torch.arange(states.size), n), step=0)
    return float(loss.sum / loss.count)


def test_cross_entropy_with_a_time_for_each_token_is_that_of_enumeration():
    """A noisy word beside a clean one costs H(word | the other), beside a noisy one H(word); a clean one nothing."""
    alone = [entropy(TOKENS[:, k]) for k in range(2)]
    given = [ENTROPY - alone[1 - k] for k in range(2)]
    expected = sum(0.5 * (0.5 * a + 0.5 * b) for a, b in zip(alone, given, strict=True)) / 2
    found = torch.tensor([mean(CrossEntropy(Ends(), t_min=0.02), batch(), n) for n in range(8)])
    assert float(found.mean()) == pytest.approx(expected, abs=4 * float(found.std()) / 8**0.5)
    together = torch.tensor([mean(CrossEntropy(Ends(), t_min=0.02), batch(levels=None), n) for n in range(8)])
    assert float(together.mean()) == pytest.approx(sum(alone) / 4, abs=4 * float(together.std()) / 8**0.5)
    assert expected < sum(alone) / 4 - 0.1


def test_levels_share_times_and_only_levels_do():
    levels = torch.tensor([[0, 0, 1, 1], [0, 1, 2, 3]])
    states = TokenStates(torch.zeros(2, 4, dtype=torch.long), levels=levels)
    model, rng = TwoTimes(), Rng(0, torch.tensor([5, 9]))
    x, _ = ProgressiveKL(0.5).noised(model, states, rng, 0)
    for time in (x.t, x.s):
        assert time.shape == (2, 4) and time[0, 0] == time[0, 1] and time[0, 2] == time[0, 3]
        assert len(set(time[1].tolist())) == 4 and time[0, 0] != time[0, 2]
    assert (x.s <= x.t).all() and (x.u == x.u[:, :1]).all()  # one way from t to s for all of a sample


@pytest.mark.parametrize("objective", [CrossEntropy(), ProgressiveKL(), TOKEN_OBJECTIVES["vlb"]()], ids=repr)
def test_slices_change_nothing(objective):
    states, samples = batch(48), torch.arange(48)
    whole = objective(TwoTimes(), states, rng=Rng(3, samples, 5), step=0)
    parts = [objective(TwoTimes(), states[rows], rng=Rng(3, rows, 5), step=0) for rows in samples.split([7, 41])]
    assert torch.allclose(whole.sum, sum(part.sum for part in parts)) and whole.count == sum(p.count for p in parts)


# Two-time maps between vectors of times.


def test_on_equal_times_the_oracle_is_the_one_that_is_known():
    x = torch.randn(40, 2, len(WORDS), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, s = torch.full((40,), 1.0, dtype=torch.float64), torch.full((40,), 0.2, dtype=torch.float64)
    g = (exact_flow(x, 1.0, 0.2) - 0.2 * x) / 0.8
    assert (TwoTimes().probabilities(x, t, s) - g).abs().max() < 3e-3


def divergence(objective, rounds=2):
    found = [
        objective(TwoTimes(), batch(300), rng=Rng(1, torch.arange(300), n), step=0).metrics["few_step_kl"]
        for n in range(rounds)
    ]
    return float(sum(total for total, _ in found) / sum(count for _, count in found))


def test_two_jumps_are_one_where_all_tokens_go_straight_from_their_times_to_theirs(monkeypatch):
    """No divergence at the exact map; with a middle of its own for each token the way has a corner, and there is one."""
    objective = ProgressiveKL(0.0, Uniform(0.1, 1.0), boundary=0.0, t_min=0.05)
    assert divergence(objective) < 1e-4
    real = TokenStates.draws

    def apart(self, model, states, rng, step):
        x, on_diagonal = type(self).noised(self, model, states, rng, step)
        u = states.at_tokens(real(states, rng)[0].uniform("u", 2 * states.size)).to(x.t)
        return type(x)(x.tokens, x.x_t, x.t, x.s, x.context, u), on_diagonal

    monkeypatch.setattr(objective, "noised", apart.__get__(objective))
    assert divergence(objective) > 1e-3


def test_objectives_say_whether_tokens_may_have_times_of_their_own():
    assert {name for name, kind in TOKEN_OBJECTIVES.items() if kind.each_token} == {
        "cross-entropy",
        "endpoint",
        "kl-psd",
    }
    assert math.isfinite(mean(ProgressiveKL(), batch(60)))
