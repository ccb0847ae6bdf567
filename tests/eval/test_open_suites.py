import itertools

import pytest

from eval.validity.open import function_cases, parses

SOURCE = '''import os


def area(width, height):
    """Of a rectangle."""
    if width < 0:
        raise ValueError(
            "negative"
        )
    return width * height


class Empty:
    pass
'''


def test_prompts_are_the_first_half_of_top_level_functions():
    (case,) = function_cases([SOURCE, "not ( python"])
    assert case.prompt.startswith("def area") and case.prompt.endswith("raise ValueError(\n") is False
    assert SOURCE.endswith(case.real) and case.prompt + case.real == SOURCE[SOURCE.index("def area") :]
    assert parses(case.prompt, case.real)


@pytest.mark.parametrize(
    "continuation, valid",
    [
        ("        raise ValueError\n    return 1\n", True),
        ("        x = (1,\n", True),  # an open bracket may still be closed
        ("        for i in x:\n", True),  # a body may still come
        ("        x = 1\n    garbage here now", True),  # only whole lines count
        ("        x = = 1\n", False),
        ("        x = 1\n      y = 2\n", False),  # no such indentation
        ("        raise ValueError", False),  # not a single whole line
        ("        x = 'open\n", False),  # a string ends with its line
        ("        ) = 3\n    return\n", False),
    ],
)
def test_what_still_parses(continuation, valid):
    assert parses('def area(width, height):\n    """Doc."""\n    if width:\n', continuation) is valid


def test_molecules_are_all_strings_that_rdkit_reads():
    pytest.importorskip("rdkit")
    from rdkit import Chem

    from eval.validity.smiles import SYMBOLS, smiles

    law = smiles(4).laws["the molecule is"]
    read = {" ".join(w) for w in itertools.product(SYMBOLS, repeat=4) if Chem.MolFromSmiles("".join(w)) is not None}
    assert set(law) == read and sum(law.values()) == pytest.approx(1)
    assert "C 1 C 1" not in law and "C = C C" in law and "F" not in SYMBOLS
