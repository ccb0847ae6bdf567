"""The built-in suites: small languages whose words hold together only jointly."""

import datetime
from itertools import permutations, product

from eval.validity.suites import Suite, register

POKER_HANDS = ("high card", "one pair", "two pair", "full house", "straight flush", "royal flush")
HAND_COUNTS = {
    "high card": 1_302_540, "one pair": 1_098_240, "two pair": 123_552, "three of a kind": 54_912, "straight": 10_200,
    "flush": 5_108, "full house": 3_744, "four of a kind": 624, "straight flush": 36, "royal flush": 4,
}  # fmt: skip
"""Five-card hands by name, of 2,598,960."""


@register("poker")
def poker() -> Suite:
    """Six two-word hands, uniform. From true marginals drawn apart: 10/36 valid."""
    return Suite("poker", {"the hand is": uniform(POKER_HANDS)})


@register("poker-frequency")
def poker_frequency() -> Suite:
    """All ten names of a hand, one to four words, as often as five cards make them."""
    total = sum(HAND_COUNTS.values())
    return Suite("poker-frequency", {"the hand is": {hand: count / total for hand, count in HAND_COUNTS.items()}})


@register("pairs", (10, 64))
def pairs(m: int) -> Suite:
    """m bijective word pairs (a_i, b_i), uniform. From true marginals drawn apart: 1/m valid."""
    _check("pairs", m, 2, 4096)
    return Suite(f"pairs-{m}", {"the pair is": uniform(f"a{i} b{i}" for i in range(m))})


@register("skip", (64,))
def skip(m: int) -> Suite:
    """(a, noise, π(a)), noise independent of a: what is joint skips a word. A factorised head and a
    first-order chain both get 1/m."""
    _check("skip", m, 2, 256)
    return Suite(f"skip-{m}", {"the triple is": uniform(f"a{i} n{j} b{i}" for i, j in product(range(m), repeat=2))})


WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip


@register("dates")
def dates() -> Suite:
    """Weekday, day, month and year of the days from 2024 to 2027: a leap year and three others. (The whole cycle
    of 28 years is a sum of three numbers modulo 7 that small trunks do not find.)"""
    first, end = datetime.date(2024, 1, 1), datetime.date(2028, 1, 1)
    days = (first + datetime.timedelta(n) for n in range((end - first).days))
    return Suite(
        "dates",
        {"the day is": uniform(f"{WEEKDAYS[d.weekday()]} {d.day} {MONTHS[d.month - 1]} {d.year}" for d in days)},
    )


@register("brackets", (8, 16))
def brackets(n: int) -> Suite:
    """Balanced words of n round brackets, uniform: Catalan(n/2) of them."""
    _check("brackets", n, 4, 20)
    if n % 2:
        raise ValueError(f"brackets-{n}: a balanced word has an even length")

    def words(open_left: int, depth: int) -> list[str]:
        if not open_left and not depth:
            return [""]
        longer = [f"( {rest}" for rest in words(open_left - 1, depth + 1)] if open_left else []
        return longer + ([f") {rest}" for rest in words(open_left, depth - 1)] if depth else [])

    return Suite(f"brackets-{n}", {"the word is": uniform(word.strip() for word in words(n // 2, 0))})


@register("sums", (1, 2))
def sums(d: int) -> Suite:
    """a + b = c with d digits each, a word a digit; every pair is a prompt and has one answer of d + 1."""
    _check("sums", d, 1, 2)
    laws = {}
    for a, b in product(range(10**d), repeat=2):
        laws[f"{_digits(a, d)} + {_digits(b, d)} ="] = {_digits(a + b, d + 1): 1.0}
    return Suite(f"sums-{d}", laws)


@register("sudoku4")
def sudoku4() -> Suite:
    """The 288 filled 4×4 grids, row by row, uniform."""
    rows = list(permutations("1234"))

    def grids(above: tuple[tuple[str, ...], ...]) -> list[str]:
        if len(above) == 4:
            return [" ".join(word for row in above for word in row)]
        return [grid for row in rows if _fits(above, row) for grid in grids((*above, row))]

    return Suite("sudoku4", {"the grid is": uniform(grids(()))})


def _fits(above: tuple[tuple[str, ...], ...], row: tuple[str, ...]) -> bool:
    """No digit twice in a column, nor in a 2×2 box with the row above when that one opened it."""
    if any(row[c] == other[c] for other in above for c in range(4)):
        return False
    if len(above) % 2 == 0:
        return True
    return all({*row[c : c + 2], *above[-1][c : c + 2]} == set("1234") for c in (0, 2))


def uniform(texts) -> dict[str, float]:
    texts = list(texts)
    return dict.fromkeys(texts, 1 / len(texts))


def _digits(number: int, width: int) -> str:
    return " ".join(f"{number:0{width}d}")


def _check(name: str, size: int, low: int, high: int) -> None:
    if not low <= size <= high:
        raise ValueError(f"{name}-{size}: the size must lie between {low} and {high}")
