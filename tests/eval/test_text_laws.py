"""Distances of samples from real text by counting: against enumeration, hand-made cases and the law itself."""

import math
from itertools import product

import numpy as np
import pytest

from eval.text_laws import MIXED, brier, geometric, ngram_kl, pair_score

LAW = {(0, 0): 0.5, (0, 1): 0.2, (1, 1): 0.3}


def test_two_draws_estimate_the_brier_score_of_a_law_without_bias():
    """Every pair of draws, weighted by its chance, against 2 Q(y) − Σ Q²."""
    for real in [(0, 0), (0, 1), (1, 1), (1, 0)]:
        mean = sum(LAW[a] * LAW[b] * pair_score(real, [a, b]) for a, b in product(LAW, repeat=2))
        assert mean == pytest.approx(2 * LAW.get(real, 0) - sum(p**2 for p in LAW.values()), abs=1e-12)


def test_more_draws_are_all_their_pairs():
    draws, real = [(0, 0), (0, 1), (0, 0), (1, 1), (0, 0)], (0, 0)
    pairs = [pair_score(real, [a, b]) for i, a in enumerate(draws) for b in draws[:i]]
    assert pair_score(real, draws) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_the_right_law_scores_best_in_expectation():
    """A proper score: no other law does better on text drawn from this one."""

    def expected(law):
        return sum(p * 2 * law.get(y, 0) for y, p in LAW.items()) - sum(q**2 for q in law.values())

    rng = np.random.default_rng(0)
    for _ in range(50):
        other = dict(zip(LAW, rng.dirichlet([1.0] * 3).tolist(), strict=True))
        assert expected(other) <= expected(LAW) + 1e-12


def test_brier_lm_is_the_geometric_mean_and_leaves_out_prompts_that_say_nothing():
    right, wrong = [1, 2, 3, 4], [1, 2, 9, 9]
    got = brier(
        {"a": (right, [right, right]), "b": (right, [right, wrong]), "c": (right, [right]), "d": ([1], [right] * 2)}
    )
    assert got is not None and got.prompts == 2
    # after b: all agree in one and two tokens; of three and four, one of two is right and the two differ
    assert got.scores == pytest.approx({1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0})
    both = brier({"a": (right, [right, right]), "b": (right, [wrong, wrong])})
    assert both.scores == pytest.approx({1: 1.0, 2: 1.0, 3: 0.0, 4: 0.0}) and both.overall == 0
    assert both.errors[1] == 0 and both.errors[3] == pytest.approx(1.0)  # +1 and −1
    assert geometric(np.array([0.5, 0.5, 0.5, 0.5])) == pytest.approx(50)
    assert geometric(np.array([0.5, 0.5, 0.5, -0.1])) == 0
    assert brier({"a": (right, [right])}) is None
    assert brier({"a": (right, [right, right])}).overall_error is None


def test_n_gram_kl_by_hand_and_of_a_text_with_itself():
    real, samples = [[0, 0, 0, 1]], [[0, 1]]
    q = (1 - MIXED) * 0.5 + MIXED / 2
    assert ngram_kl(real, samples, 1) == pytest.approx(0.75 * math.log(0.75 / q) + 0.25 * math.log(0.25 / q))
    # 2-grams of the real text 00 00 01; of the samples 01 alone; MIXED is spread over both
    low, high = MIXED / 2, (1 - MIXED) + MIXED / 2
    assert ngram_kl(real, samples, 2) == pytest.approx(2 / 3 * math.log(2 / 3 / low) + 1 / 3 * math.log(1 / 3 / high))
    rng = np.random.default_rng(0)
    text = [rng.choice(4, size=50, p=[0.4, 0.3, 0.2, 0.1]).tolist() for _ in range(40)]
    assert 0 <= ngram_kl(text, text, 1) < 1e-3
    dull = [[0] * 50] * 40
    halves = ngram_kl(text[::2], text[1::2], 1)
    assert halves < 0.01 < ngram_kl(text, dull, 1)
    assert math.isinf(ngram_kl(text, [[1]], 2)) and ngram_kl([[1]], text, 2) == 0
