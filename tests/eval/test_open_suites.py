import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from eval.loading import LoadedRun
from eval.validity.open import function_cases, parses, python
from eval.validity.open_probe import probe_open
from mtp import MTPForCausalLM
from training.data.tokenizer import train_bpe

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
    from rdkit import Chem

    from eval.validity.smiles import SYMBOLS, smiles

    law = smiles(4).laws["the molecule is"]
    read = {" ".join(w) for w in itertools.product(SYMBOLS, repeat=4) if Chem.MolFromSmiles("".join(w)) is not None}
    assert set(law) == read and sum(law.values()) == pytest.approx(1)
    assert "C 1 C 1" not in law and "C = C C" in law and "F" not in SYMBOLS


def test_a_run_is_probed_on_what_it_writes_beside_the_real_text():
    torch.manual_seed(0)
    tokenizer = train_bpe([SOURCE] * 3, 300)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    trunk = AutoModelForCausalLM.from_config(config)
    run = LoadedRun(
        "r", MTPForCausalLM.from_trunk(trunk, "independent", 4).eval(), tokenizer, "independent", 0, None, {}
    )
    cases = function_cases([SOURCE] * 3)
    for block, subject in ((None, "independent"), (1, "trunk")):
        own, data = probe_open(run, python(), cases, num=6, batch=4, block=block)
        assert own["subject"] == subject and own["n"] == 6 and own["prompts"] == 3
        assert own["value"] < 1 and data["subject"] == "data" and data["value"] == 1
        assert own["contract"]["nfe"] == (48 if block == 1 else 12)
