"""What `benchmarks.flow_steps` prints as a bound, against the frequencies of the head's own draws."""

import math
from collections import Counter

import pytest
import torch

from benchmarks.flow_steps import bound
from eval.validity.families import poker, skip
from flowmap.rng import Rng
from flowmap.warp import Warp
from tests.eval.test_probe import run_for


def small(suite):
    run = run_for(suite, "flow-map", 2, state_size=4, width=16, num_layers=1)
    run.model.head.steps = 2
    for parameter in run.model.parameters():
        parameter.data *= 0.4  # no block so unlikely that none is drawn
    return run


@torch.no_grad()
def test_with_many_draws_it_is_the_negative_log_frequency_of_the_heads_own_blocks():
    suite = poker()
    run, n = small(suite), 50_000
    value, error = bound(run, suite, 100, 4096, 0)
    (law,) = suite.laws.values()
    start = torch.tensor([[0, *run.tokenizer.encode("the hand is")]])
    context = run.model.context(run.model.states(start)[0][:, -1].expand(n, -1))
    drawn = Counter(map(tuple, run.model.head.sample(context, Warp(), rng=Rng(7, torch.arange(n))).tokens.tolist()))
    found = -sum(p * math.log(drawn[tuple(run.tokenizer.encode(text))] / n) for text, p in law.items())
    assert value == pytest.approx(found, abs=4 * error + 0.02)


def test_of_more_answers_than_it_scores_it_takes_a_fair_sample():
    suite = skip(16)
    run = small(suite)
    value, error = bound(run, suite, 10_000, 64, 0)
    some, spread = bound(run, suite, 100, 64, 1)
    assert some == pytest.approx(value, abs=4 * (spread + error))
    assert spread > error
