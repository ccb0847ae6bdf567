"""Slopes of scores over network calls: against numpy's own fit, their errors against repeated draws, and the report's section."""

import numpy as np
import pytest

from eval.records import record
from eval.refinement import paired_slope, sections, slope_of_means, slope_record, weights

CALLS = (1, 2, 4, 8, 16)


def test_the_slope_is_that_of_least_squares_over_doublings():
    rng = np.random.default_rng(0)
    values = rng.random((7, 5))
    fitted = np.polyfit(np.log2(CALLS), values.mean(0), 1)[0]
    value, error = paired_slope(CALLS, values)
    assert value == pytest.approx(fitted) and error is not None
    assert slope_of_means(CALLS, values.mean(0), [0.1] * 5)[0] == pytest.approx(fitted)
    assert weights(CALLS) @ np.log2(CALLS) == pytest.approx(1) and weights(CALLS).sum() == pytest.approx(0)
    with pytest.raises(ValueError, match="two numbers of network calls"):
        weights([4, 4])


def test_its_errors_are_the_spread_of_repeated_measurements():
    rng = np.random.default_rng(0)
    n, repeats = 200, 400
    p = np.array([0.3, 0.35, 0.4, 0.45, 0.5])
    shared = rng.random((repeats, n, 1)) < p  # a document is as hard at every number of calls
    made = [paired_slope(CALLS, one.astype(float)) for one in shared]
    assert np.std([m for m, _ in made]) == pytest.approx(np.mean([e for _, e in made]), rel=0.12)
    apart = rng.binomial(n, p, (repeats, 5)) / n
    errors = np.sqrt(apart * (1 - apart) / n)
    made = [slope_of_means(CALLS, m, e) for m, e in zip(apart, errors, strict=True)]
    assert np.std([m for m, _ in made]) == pytest.approx(np.mean([e for _, e in made]), rel=0.12)
    assert np.mean([m for m, _ in made]) == pytest.approx(0.05, abs=0.003)
    assert paired_slope(CALLS, np.ones((1, 5))) == (pytest.approx(0), None)


def test_the_report_draws_scores_by_calls_and_says_what_a_doubling_adds():
    def score(nfe, value, subject="flow-flm", **more):
        contract = {"nfe": nfe, "steps": nfe, "estimator": "k-step", **more}
        return record("harness_score", value, on="local_blimp", subject=subject, kind="bound", unit="score", score="acc",
                      stderr=0.01, stderr_over="documents", n=100, contract=contract)  # fmt: skip

    rows = [score(n, 0.5 + 0.01 * i) for i, n in enumerate(CALLS)]
    rows.append(slope_record(rows[0], CALLS, 0.01, 0.002))
    rows.append(score(1, 0.7, "flow-ar"))
    (section,) = sections(rows)
    assert section.title == "Refinement: local_blimp, acc" and "flow-ar" not in section.picture
    assert section.table[1] == ["flow-flm, k-step", "+0.0100", "+0.0061 to +0.0139"]
    assert not sections(rows[-1:])
    apart = [score(n, 0.9, self_conditioning=False) for n in CALLS]  # a line of its own, no other seed of the first
    assert "flow-flm, one pass a step, k-step" in sections([*rows, *apart])[0].picture
