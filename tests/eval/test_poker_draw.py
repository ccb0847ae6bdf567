"""Four cards and one more, against a slow and obvious second opinion."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest

from eval.validity.families import HAND_COUNTS
from eval.validity.poker_draw import NAMES, RANKS, STRATA, SUITS, canonical, classify, draw_chances, poker_draw, stratum


def name_of(hand):
    """One hand of card numbers, by the rules as they are told."""
    ranks, suits = [c // 4 for c in hand], [c % 4 for c in hand]
    most = sorted(Counter(ranks).values(), reverse=True)
    runs = [set(range(low, low + 5)) for low in range(9)] + [{12, 0, 1, 2, 3}]
    straight, flush = set(ranks) in runs, len(set(suits)) == 1
    if straight and flush:
        return "royal flush" if set(ranks) == set(range(8, 13)) else "straight flush"
    if most[0] == 4:
        return "four of a kind"
    if most[:2] == [3, 2]:
        return "full house"
    if flush:
        return "flush"
    if straight:
        return "straight"
    return {3: "three of a kind", 2: "two pair" if most[:2] == [2, 2] else "one pair", 1: "high card"}[most[0]]


def test_hands_are_named_as_the_rules_say():
    rng = random.Random(0)
    hands = [rng.sample(range(52), 5) for _ in range(3000)]
    hands += [
        [4 * r + s for r in run] for run in ((0, 1, 2, 3, 12), (8, 9, 10, 11, 12), (3, 4, 5, 6, 7)) for s in range(4)
    ]
    hands += [[16, 17, 18, 19, 0], [16, 17, 18, 0, 1], [0, 4, 8, 12, 49]]
    assert [NAMES[k] for k in classify(np.array(hands))] == [name_of(hand) for hand in hands]


def test_all_five_card_hands_come_as_often_as_they_do():
    cards = np.array(list(itertools.combinations(range(52), 4)))
    chances = draw_chances(cards)
    assert np.allclose(chances.sum(1), 1)
    assert dict(zip(NAMES, chances.mean(0), strict=True)) == pytest.approx(
        {name: count / 2_598_960 for name, count in HAND_COUNTS.items()}
    )
    names, counts = np.unique(stratum(cards), return_counts=True)
    by_name = {STRATA[k]: int(n) for k, n in zip(names, counts, strict=True)}
    assert by_name["four to a flush"] == 4 * 715
    assert by_name["open-ended"] == 9 * (4**4 - 4)  # 2345 to TJQK, suits not all one
    assert by_name["two pair"] == 78 * 36 and by_name["trips"] == 13 * 4 * 48
    # one rank missing inside five in a row, or A234 and JQKA, which have one open end
    assert by_name["inside straight"] == (10 * 3 + 2) * (4**4 - 4)


def test_renaming_suits_keeps_a_form_and_nothing_else_does():
    hand = np.array([[3, 14, 25, 36]])
    renamed = hand // 4 * 4 + np.array([2, 3, 1, 0])[hand % 4]
    assert canonical(hand) == canonical(renamed) != canonical(hand + 4)
    assert len(np.unique(canonical(np.array(list(itertools.combinations(range(52), 4)))))) == 16_432


@pytest.fixture(scope="module")
def suite():
    return poker_draw()


def test_the_law_is_the_count_of_the_48_cards(suite):
    for prompt in suite.laws:
        words = prompt.split()
        hand = [4 * RANKS.index(r) + SUITS.index(s) for r, s in zip(words[::2], words[1::2], strict=True)]
        assert hand == sorted(hand, reverse=True)
        drawn = Counter(name_of([*hand, card]) for card in range(52) if card not in hand)
        assert suite.laws[prompt] == pytest.approx({name: n / 48 for name, n in drawn.items()})


def test_no_held_out_prompt_is_a_trained_one_in_other_colours(suite):
    def forms(prompts):
        cards = [
            [4 * RANKS.index(r) + SUITS.index(s) for r, s in zip(p.split()[::2], p.split()[1::2], strict=True)]
            for p in prompts
        ]
        return set(canonical(np.array(cards)).tolist())

    trained, held_out = forms(suite.trained), forms(suite.laws)
    assert not trained & held_out and len(trained | held_out) == 16_432
    assert len(held_out) == len(suite.laws) and 0.08 < len(held_out) / 16_432 < 0.12
    assert set(suite.strata.values()) == set(STRATA)


def test_every_stratum_is_trained_on_often_enough(suite):
    assert set(suite.train_weights) == set(suite.trained)
    assert sum(suite.train_weights.values()) == pytest.approx(1)
    cards = np.array(
        [
            [4 * RANKS.index(r) + SUITS.index(s) for r, s in zip(p.split()[::2], p.split()[1::2], strict=True)]
            for p in suite.trained
        ]
    )
    share = np.bincount(stratum(cards), weights=list(suite.train_weights.values()))
    assert len(share) == len(STRATA) and (share > 1 / 13).all()


def test_the_dumb_laws_are_as_dumb_as_they_say(suite):
    never, blind = suite.dumb_laws["never-straight-or-flush"], suite.dumb_laws["prompt-blind"]
    assert not any("flush" in text or "straight" in text for law in never.values() for text in law)
    assert len({id(law) for law in blind.values()}) == 1
    for laws in (never, blind):
        assert all(sum(law.values()) == pytest.approx(1) for law in laws.values())
    easy = [p for p in suite.prompts if suite.strata[p] == "two pair"]
    assert all(never[p] == pytest.approx(suite.laws[p]) for p in easy)
