"""Judge NLL at equal entropy: lines between temperatures, and their picture."""

import pytest

from eval.frontier import at_common, at_entropy, frontiers, one_knob, sections
from eval.records import record


def test_judge_nll_at_an_entropy_lies_on_the_line_between_its_neighbours():
    pairs = [(3.0, 2.0), (1.0, 1.0), (2.0, 1.2)]
    assert at_entropy(pairs, 2.25) == pytest.approx(1.4) and at_entropy(pairs, 1.0) == pytest.approx(1.0)
    assert at_entropy(pairs, 0.9) is None and at_entropy(pairs, 3.1) is None


def made(metric, value, subject="flow-leap", temperature=1.0, seed=0, **contract):
    told = {"temperature": temperature, **contract}
    return record(
        metric, value, on="text", subject=subject, kind="estimate", unit="nats", train_seed=seed, contract=told
    )


def test_a_line_for_each_way_of_writing_seeds_averaged():
    flow = {"sampler": "pushforward", "nfe": 4}
    rows = [
        made(metric, value + seed + temperature, temperature=temperature, seed=seed, **flow)
        for temperature in (0.7, 1.0)
        for seed in (0, 1)
        for metric, value in (("judge_nll", 2.0), ("entropy", 4.0))
    ]
    for metric in ("judge_nll", "entropy"):  # ways of their own, not other seeds
        rows += [
            made(metric, 9.0, **flow, decoder="nearest"),
            made(metric, 9.0, **flow, decoder="contextual", self_conditioning=False),
            made(metric, 9.0, **flow, guidance=2.0, top_p=0.9, delay=1, order="random", grid="clock"),
        ]
    rows += [made("judge_nll", 3.0, subject="trunk", block=1), made("entropy", 5.0, subject="trunk", block=1)]
    rows.append(record("judge_nll", 1.0, on="text", subject="data", kind="estimate", unit="nats", contract={"new": 4}))
    lines = frontiers(rows, "text")
    way = ("flow-leap", 1, "pushforward", 4)
    told = ("decoder nearest", "one pass a step", "grid clock, order random, guidance 2, top_p 0.9, delay 1")
    others = {(f"flow-leap, {what}", *way[1:]) for what in told}
    assert set(lines) == {way, ("trunk", 1, None, None)} | others
    assert lines[way][0.7, 1.0] == pytest.approx((5.2, 3.2, 0.5))
    assert lines[way][1.0, 1.0] == pytest.approx((5.5, 3.5, 0.5))
    (section,) = sections(rows)
    assert section.title == "Judge's frontier: text"
    assert "flow-leap, pushforward, nfe 4" in section.picture and "trunk" not in section.picture
    assert "T=0.7" in section.picture and "real text" not in section.picture  # its entropy is not known
    assert not sections(rows[-3:])


def test_where_the_score_temperature_was_turned_it_alone_makes_the_line():
    rows = [
        made(metric, value + score, temperature=temperature, sampler="euler", nfe=4, **told)
        for temperature, score in ((0.0, 1.0), (1.0, 0.8), (1.0, 1.0))
        for told in [{"score_temperature": score} if score != 1 else {}]
        for metric, value in (("judge_nll", 2.0 + temperature), ("entropy", 4.0))
    ]
    ((way, line),) = frontiers(rows, "text").items()
    assert way == ("flow-leap", 1, "euler", 4)  # one way, whatever the knob
    assert {turned: point[:2] for turned, point in line.items()} == {(1.0, 0.8): (4.8, 3.8), (1.0, 1.0): (5.0, 4.0)}
    assert "T=1, score T=0.8" in sections(rows)[0].picture


def test_the_longest_line_of_one_knob_is_drawn():
    hot, cold = {(0.7, 0.8): 1, (1.0, 0.8): 2}, {(0.0, 1.0): 3, (0.7, 1.0): 4, (1.0, 1.0): 5}
    assert one_knob(hot) == hot and one_knob(cold | {(1.0, 0.8): 2}) == cold and one_knob({}) == {}


def test_two_writers_are_compared_where_both_have_an_entropy():
    rising = [(1.0, 1.0), (3.0, 2.0)]
    assert at_common(rising, [(0.0, 5.0), (2.0, 6.0)]) == (2.0, 1.5, 6.0)
    assert at_common(rising, [(2.0, 1.0)] * 3) == (2.0, 1.5, 1.0)  # temperature changes nothing
    assert at_common([(2.0, 1.0)], [(2.0, 4.0)]) == (2.0, 1.0, 4.0)
    assert at_common(rising, [(4.0, 1.0), (5.0, 1.0)]) is None and at_common([(2.0, 1.0)], [(3.0, 1.0)]) is None
