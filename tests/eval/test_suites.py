import datetime
import itertools
import json

import pytest

from eval.validity.cases import load_cases
from eval.validity.families import POKER_HANDS, brackets, dates, pairs, poker, poker_frequency, skip, sudoku4, sums
from eval.validity.suites import Suite, load_suite, register, suite_names


def length_of(suite):
    return max(len(text.split()) for law in suite.laws.values() for text in law)


def words(suite):
    return [sorted({text.split()[k] for law in suite.laws.values() for text in law}) for k in range(length_of(suite))]


@pytest.mark.parametrize(
    "suite, answers, chance", [(poker(), 6, 10 / 36), (pairs(10), 10, 1 / 10), (skip(6), 36, 1 / 6)]
)
def test_validity_by_enumeration_and_what_true_marginals_drawn_apart_would_get(suite, answers, chance):
    (prompt,) = suite.prompts
    law = suite.laws[prompt]
    marginals = [{} for _ in range(length_of(suite))]
    for text, p in law.items():
        for k, word in enumerate(text.split()):
            marginals[k][word] = marginals[k].get(word, 0) + p
    valid = mass = 0.0
    for block in itertools.product(*words(suite)):
        if suite.is_valid(prompt, " ".join(block)):
            valid += 1
            product = 1.0
            for k, word in enumerate(block):
                product *= marginals[k][word]
            mass += product
    assert valid == len(law) == answers and sum(law.values()) == pytest.approx(1)
    assert mass == pytest.approx(chance)


def test_poker_is_the_six_hands():
    suite = poker()
    assert all(suite.is_valid("the hand is", hand) for hand in POKER_HANDS)
    assert not any(suite.is_valid("the hand is", text) for text in ("high house", "high", "high card card", ""))


def test_in_skip_neither_neighbour_says_anything_of_the_partner():
    law = skip(8).laws["the triple is"]
    for noise in range(8):
        partners = {text.split()[2]: p for text, p in law.items() if text.split()[1] == f"n{noise}"}
        assert len(partners) == 8 and len(set(partners.values())) == 1


def test_cases_are_normalised_and_rows_of_one_prompt_merged(tmp_path):
    file = tmp_path / "cases.jsonl"
    rows = [
        {"prompt": "go", "texts": ["left", "far  right"], "p": [3, 1]},
        {"prompt": "go", "texts": ["left"]},
        {"prompt": "stop", "texts": ["now", "never"], "p": [1, 0]},
    ]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    suite = load_cases(file)
    assert suite.laws["go"] == pytest.approx({"left": 0.875, "far right": 0.125})
    assert suite.laws["stop"] == {"now": 1.0} and not suite.is_valid("stop", "never")


@pytest.mark.parametrize(
    "line, words",
    [
        ("not json", "line 1: not JSON"),
        ('{"text": "x"}', "line 1: a row is"),
        ('{"prompt": "x", "texts": []}', "texts must be"),
        ('{"prompt": "x", "texts": [" "]}', "texts must be"),
        ('{"prompt": "x", "texts": ["a"], "p": [1, 2]}', "list of 1 weights"),
        ('{"prompt": "x", "texts": ["a"], "p": [-1]}', "not negative"),
        ('{"prompt": "x", "texts": ["a"], "p": [0]}', "not be all zero"),
        ('{"prompt": "x", "texts": ["a"], "q": [1]}', "unknown key 'q'"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path, line, words):
    file = tmp_path / "cases.jsonl"
    file.write_text(line)
    with pytest.raises(ValueError, match=words) as caught:
        load_cases(file)
    assert "\n" not in str(caught.value)


def test_unknown_suites_name_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="did you mean poker"):
        load_suite("pokr")
    with pytest.raises(ValueError, match="pairs-"):
        load_suite("pairs")
    with pytest.raises(ValueError, match="does not exist"):
        load_suite(str(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    "name", ["poker", "poker-frequency", "pairs-10", "skip-4", "dates", "brackets-8", "sums-1", "sudoku4"]
)
def test_every_law_is_one_and_its_answers_are_single_spaced_words(name):
    suite = load_suite(name)
    assert suite.name == name
    for law in suite.laws.values():
        assert sum(law.values()) == pytest.approx(1)
        assert all(text == " ".join(text.split()) != "" for text in law)


def test_poker_frequencies_are_those_of_all_five_card_hands():
    law = poker_frequency().laws["the hand is"]
    assert len(law) == 10 and law["royal flush"] == pytest.approx(4 / 2_598_960)
    assert law["one pair"] == pytest.approx(13 * 6 * 220 * 64 / 2_598_960)


def test_balanced_words_are_all_that_count_to_nothing_and_never_below():
    for n in (4, 8):
        law = brackets(n).laws["the word is"]
        balanced = []
        for word in itertools.product("()", repeat=n):
            depth = list(itertools.accumulate(1 if c == "(" else -1 for c in word))
            if min(depth) >= 0 and depth[-1] == 0:
                balanced.append(" ".join(word))
        assert sorted(law) == sorted(balanced)
    assert len(brackets(16).laws["the word is"]) == 1430


def test_dates_exist_and_fall_on_their_weekday():
    law = dates().laws["the day is"]
    assert len(law) == 4 * 365 + 1
    assert "Monday 1 January 2024" in law and "Thursday 29 February 2024" in law
    assert "Saturday 29 February 2025" not in law and "Sunday 1 January 2024" not in law


def test_of_all_weekdays_days_months_and_years_those_are_valid_that_exist():
    suite = dates()
    weekdays, days, months, years = words(suite)
    assert (len(weekdays), len(days), len(months), len(years)) == (7, 31, 12, 4)
    for weekday, day, month, year in itertools.product(weekdays, days, months, years):
        try:
            exists = datetime.datetime.strptime(f"{day} {month} {year}", "%d %B %Y").strftime("%A") == weekday
        except ValueError:
            exists = False
        assert suite.is_valid("the day is", f"{weekday} {day} {month} {year}") == exists


def test_sums_add_up():
    suite = sums(2)
    assert len(suite.laws) == 10_000
    assert suite.laws["9 9 + 0 7 ="] == {"1 0 6": 1.0} and suite.laws["0 3 + 0 4 ="] == {"0 0 7": 1.0}
    for prompt in suite.laws:
        a, b = (int(part.replace(" ", "")) for part in prompt.removesuffix(" =").split(" + "))
        right = [n for n in range(1000) if suite.is_valid(prompt, " ".join(f"{n:03d}"))] if a < 10 else [a + b]
        assert right == [a + b] and suite.is_valid(prompt, " ".join(f"{a + b:03d}"))


def test_there_are_288_filled_grids_and_each_is_one():
    law = sudoku4().laws["the grid is"]
    assert len(law) == 288
    full = set("1234")
    for text in law:
        g = [text.split()[4 * r : 4 * r + 4] for r in range(4)]
        assert all(set(row) == full for row in g) and all({g[r][c] for r in range(4)} == full for c in range(4))
        for r, c in itertools.product((0, 2), repeat=2):
            assert {g[r][c], g[r][c + 1], g[r + 1][c], g[r + 1][c + 1]} == full


def test_of_all_grids_with_a_permutation_in_each_row_those_are_valid_that_are_filled_right():
    suite, full = sudoku4(), set("1234")
    valid = 0
    for rows in itertools.product(itertools.permutations("1234"), repeat=4):
        right = all(set(column) == full for column in zip(*rows, strict=True)) and all(
            {rows[r][c], rows[r][c + 1], rows[r + 1][c], rows[r + 1][c + 1]} == full for r in (0, 2) for c in (0, 2)
        )
        if right or valid < 288:
            assert suite.is_valid("the grid is", " ".join(itertools.chain(*rows))) == right
        valid += right
    assert valid == len(suite.laws["the grid is"]) == 288
    assert not suite.is_valid("the grid is", " ".join("1" * 16))


@pytest.mark.parametrize(
    "name, words", [("brackets-7", "even"), ("sums-3", "between 1 and 2"), ("pairs-1", "between 2")]
)
def test_sizes_that_make_no_suite_are_refused(name, words):
    with pytest.raises(ValueError, match=words):
        load_suite(name)


def test_a_suite_of_ones_own_is_a_function():
    @register("coins")
    def coins() -> Suite:
        return Suite("coins", {"the coins are": {"heads tails": 0.5, "tails heads": 0.5}})

    assert load_suite("coins").is_valid("the coins are", "tails heads") and "coins" in suite_names()


def test_a_suite_of_ones_own_is_named_where_it_lies(tmp_path, monkeypatch):
    (tmp_path / "my_suites.py").write_text(
        "from eval.validity.suites import Suite\n"
        "def coins():\n    return Suite('coins', {'the coins are': {'heads tails': 0.5, 'tails heads': 0.5}})\n"
        "def nothing():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_suite("my_suites:coins").is_valid("the coins are", "tails heads")
    for name, told in (
        ("my_suites:nothing", "no function"),
        ("my_suites:none", "no function"),
        ("not_there:coins", "PYTHONPATH"),
    ):
        with pytest.raises(ValueError, match=told):
            load_suite(name)
