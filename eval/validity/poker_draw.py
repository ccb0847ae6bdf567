"""poker-draw: four cards are seen, one more is dealt; the answer is the name of the hand.

The exact law counts the 48 unseen cards. Whether a prompt is held out depends on its cards up to a
renaming of suits, so no held-out prompt is a trained one in other colours. Most prompts are easy and
the hard ones rare, so results are read stratum by stratum, beside two dumb laws: one that knows the
prompt but never says straight or flush, one that knows how often hands come but not the prompt.
"""

from collections.abc import Mapping
from functools import cache
from itertools import combinations, permutations

import numpy as np

from eval.validity.suites import Suite, register, share_of_hash

NAMES = (
    "high card", "one pair", "two pair", "three of a kind", "straight", "flush", "full house", "four of a kind",
    "straight flush", "royal flush",
)  # fmt: skip
RANKS, SUITS = ["2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K", "A"], ["♣", "♦", "♥", "♠"]
STRATA = ("four to a flush", "open-ended", "inside straight", "two pair", "trips", "rest")
HELD_OUT = 0.1
UNPAIRED = "high card"


@register("poker-draw")
@cache
def poker_draw() -> Suite:
    """Trained on nine tenths of all four-card prompts; probed on one prompt of each form held out."""
    cards = np.array(list(combinations(range(52), 4)))
    forms, first, form_of = np.unique(canonical(cards), return_index=True, return_inverse=True)
    representatives = cards[first]
    chances = draw_chances(representatives)
    laws = [{NAMES[k]: float(row[k]) for k in np.flatnonzero(row)} for row in chances]
    out = np.array([share_of_hash(f"poker-draw:{form}") < HELD_OUT for form in forms])
    trained = {prompt(hand): laws[form] for hand, form in zip(cards, form_of, strict=True) if not out[form]}
    picked = [_picked_member(int(form), np.flatnonzero(form_of == form)) for form in np.flatnonzero(out)]
    held_out = {prompt(cards[i]): laws[form_of[i]] for i in picked}
    strata = stratum(representatives)
    blind = chances[form_of[~out[form_of]]].mean(0)
    blind_law = {NAMES[k]: float(blind[k]) for k in np.flatnonzero(blind)}
    return Suite(
        "poker-draw",
        held_out,
        train_laws=trained,
        train_weights=_weights(cards, strata[form_of], ~out[form_of]),
        strata={prompt(cards[i]): STRATA[strata[form_of[i]]] for i in picked},
        dumb_laws={
            "never-straight-or-flush": {text: _without_rare(law) for text, law in held_out.items()},
            "prompt-blind": dict.fromkeys(held_out, blind_law),
        },
    )


def prompt(hand: np.ndarray) -> str:
    """Highest card first: `K ♥ J ♦ 9 ♠ 7 ♠`."""
    return " ".join(f"{RANKS[card // 4]} {SUITS[card % 4]}" for card in sorted(hand.tolist(), reverse=True))


def canonical(cards: np.ndarray) -> np.ndarray:
    """(n, 4) → (n,) numbers that are equal exactly when hands differ in the names of their suits alone."""
    best = None
    for renaming in permutations(range(4)):
        renamed = np.sort(cards // 4 * 4 + np.array(renaming)[cards % 4], axis=1)
        number = renamed @ np.array([52**3, 52**2, 52, 1])
        best = number if best is None else np.minimum(best, number)
    assert best is not None
    return best


def draw_chances(cards: np.ndarray) -> np.ndarray:
    """(n, 4) → (n, 10): the chance of each hand after one more card."""
    counts = np.zeros((len(cards), len(NAMES)))
    for card in range(52):
        unseen = ~(cards == card).any(1)
        made = np.concatenate([cards[unseen], np.full((unseen.sum(), 1), card)], 1)
        np.add.at(counts, (np.flatnonzero(unseen), classify(made)), 1)
    return counts / 48


def classify(hands: np.ndarray) -> np.ndarray:
    """(n, 5) cards → (n,) index into NAMES."""
    ranks, suits = np.sort(hands // 4, axis=1), hands % 4
    equal_pairs = sum((ranks[:, i] == ranks[:, j]).astype(int) for i, j in combinations(range(5), 2))
    name = np.choose(equal_pairs, [0, 1, 2, 3, 6, 0, 7])
    flush = (suits == suits[:, :1]).all(1)
    wheel = (ranks == [0, 1, 2, 3, 12]).all(1)
    straight = (equal_pairs == 0) & ((ranks[:, 4] - ranks[:, 0] == 4) | wheel)
    name = np.where(straight, 4, name)
    name = np.where(flush, 5, name)
    name = np.where(straight & flush, 8, name)
    return np.where(straight & flush & (ranks[:, 0] == 8), 9, name)


def stratum(cards: np.ndarray) -> np.ndarray:
    """(n, 4) → (n,) index into STRATA; a hand that fits several is in the first."""
    ranks = np.sort(cards // 4, axis=1)
    pairs = sum((ranks[:, i] == ranks[:, j]).astype(int) for i, j in combinations(range(4), 2))
    low_ace = np.sort(np.where(ranks == 12, -1, ranks), axis=1)
    span = np.minimum(ranks[:, 3] - ranks[:, 0], low_ace[:, 3] - low_ace[:, 0])
    at_the_end = (ranks[:, 3] == 12) | (low_ace[:, 0] == -1)
    flush = (cards % 4 == cards[:, :1] % 4).all(1)
    open_ended = (pairs == 0) & (span == 3) & ~at_the_end
    inside = (pairs == 0) & (span <= 4) & ~open_ended
    return np.select([flush, open_ended, inside, pairs == 2, pairs == 3], range(5), 5)


def _weights(cards: np.ndarray, strata: np.ndarray, trained: np.ndarray) -> dict[str, float]:
    """Half of all draws are of any prompt, half of any stratum: a straight in the making is one prompt in fifty,
    and would be learned last. What follows a prompt keeps its law."""
    size = np.bincount(strata[trained], minlength=len(STRATA))
    weight = 0.5 / trained.sum() + 0.5 / len(STRATA) / size[strata]
    return {prompt(cards[i]): float(weight[i]) for i in np.flatnonzero(trained)}


def _without_rare(law: Mapping[str, float]) -> dict[str, float]:
    """The same law, its straights and flushes called by what the cards are worth without them."""
    kept = {name: p for name, p in law.items() if "straight" not in name and "flush" not in name}
    kept[UNPAIRED] = kept.get(UNPAIRED, 0.0) + 1 - sum(kept.values())
    return {name: p for name, p in kept.items() if p > 0}


def _picked_member(form: int, members: np.ndarray) -> int:
    return int(members[int(share_of_hash(f"member:{form}") * len(members))])
