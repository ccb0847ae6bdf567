"""Heads, objectives and codebooks of one's own, by module:Class wherever a name is taken."""

import pytest

from flowlm.model import FlowLM, FlowLMConfig
from flowmap.codebook import Codebook
from flowmap.naming import own_class
from flowmap.objectives import OBJECTIVES, Objective
from mtp.heads import build_head, option_names
from training.config import FlowConfig, ImageConfig
from training.objectives import build_objective

SIZES = {"hidden_size": 8, "embedding_size": 8, "vocab_size": 5, "block_size": 3}
OWN = """
import torch
from flowmap.codebook import Table
from flowmap.objectives import FlowMatching
from mtp.heads.chains import FirstOrderChain

class Head(FirstOrderChain):
    name = "own"

class Loss(FlowMatching):
    def __init__(self, c: float = 1.0):
        super().__init__()
        self.c = c

class Codes(Table):
    def __init__(self, size, state_size):
        super().__init__(torch.arange(size * state_size, dtype=torch.float32).view(size, state_size))
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "of_ones_own.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_head_is_built_with_its_options():
    assert "rank" in option_names("of_ones_own:Head")
    made = build_head("of_ones_own:Head", rank=4, **SIZES)
    assert made.name == "own" and made.readout.shape == (5, 4)
    with pytest.raises(ValueError, match="no option 'width'"):
        build_head("of_ones_own:Head", width=4, **SIZES)


def test_an_objective_is_built_with_its_options():
    made = build_objective("image", ImageConfig(objective="of_ones_own:Loss", options={"c": 0.5}), OBJECTIVES)
    assert type(made).__name__ == "Loss" and made.c == 0.5 and "of_ones_own:Loss" not in OBJECTIVES
    with pytest.raises(ValueError, match="no option 'd'"):
        build_objective("image", ImageConfig(objective="of_ones_own:Loss", options={"d": 1}), OBJECTIVES)


def test_a_model_with_codes_of_ones_own_is_saved_and_loaded(tmp_path):
    sizes = {"backbone": {"width": 16, "depth": 1, "heads": 2}, "vocab_size": 5, "length": 4, "state_size": 3}
    model = FlowLM(FlowLMConfig(codebook="of_ones_own:Codes", **sizes))
    assert model.map.codebook.codes().shape == (5, 3)
    model.save_pretrained(tmp_path / "model")
    again = FlowLM.from_pretrained(tmp_path / "model")
    assert (
        type(again.map.codebook).__name__ == "Codes"
        and (again.map.codebook.codes() == model.map.codebook.codes()).all()
    )


@pytest.mark.parametrize(
    "name, told",
    [
        ("nowhere_at_all:Head", "PYTHONPATH"),
        ("of_ones_own:Codex", "no Objective of the name 'Codex'"),
        ("of_ones_own:Codes", "no Objective of the name 'Codes'"),
        (":Codes", "PYTHONPATH"),
    ],
)
def test_a_wrong_name_is_one_line(name, told):
    with pytest.raises(ValueError, match=told) as raised:
        own_class(name, Objective)
    assert "\n" not in str(raised.value)


def test_an_unknown_codebook_says_which_there_are():
    with pytest.raises(ValueError, match=r"unknown codebook 'one-hat': known are one-hot.*module:Class"):
        FlowLM(FlowLMConfig(codebook=FlowConfig(codebook="one-hat").codebook))
    assert issubclass(own_class("of_ones_own:Codes", Codebook), Codebook)
