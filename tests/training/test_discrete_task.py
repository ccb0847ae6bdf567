"""The baselines on the same loop: blanks and prompts change nothing of what it promises."""

import json

import pytest
import torch
from transformers import AutoModel

from flowlm import AutoregressiveLM, MaskedDiffusionLM
from tests.training.harness import (
    SMALL,
    assert_equal,
    killed_and_started_again,
    launch,
    losses,
    state,
    stopped,
    write_preset,
)
from training.config import load_preset, override
from training.loop import train
from training.run_dir import model_folder
from training.tasks import build

TINY = dict(
    flow__width=16, flow__depth=1, flow__heads=2, flow__state_size=4, training__batch_size=16, training__steps=8,
    training__checkpoint_every=3, training__evaluate_every=4, optimizer__warmup=2, **SMALL,
)  # fmt: skip
SUITE = {"data__suite": "poker", "tokenizer__kind": "words"}
KINDS = {
    "ar-suite": ("flow-ar", {**SUITE, "flow__codebook": "embedding"}),
    "ar-text": ("flow-ar", {"data__length": 12, "flow__prompts": 0.5}),
    "mdlm-suite": ("flow-mdlm", SUITE),
    "mdlm-text": ("flow-mdlm", {"data__length": 12, "flow__prompts": 0.5, "flow__options": {"time_conditioning": True}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for i in range(6):
        (folder / f"{i}.txt").write_text("".join(f"row {j} of page {i} says {j * i % 7}\n" for j in range(40)))
    return str(folder)


@pytest.fixture
def settings(text):
    def make(kind):
        preset, own = KINDS[kind]
        where = {} if "data__suite" in own else {"data__name": text}
        return preset, {**TINY, **own, **where}

    return make


@pytest.fixture
def config(settings):
    def make(kind, **more):
        preset, own = settings(kind)
        return override(load_preset(preset), **{**own, **more})

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_changes_nothing_but_rounding(config, tmp_path, kind):
    for accumulation in (1, 4):
        train(config(kind, training__accumulation=accumulation), tmp_path / str(accumulation), build, quiet=True)
    assert_equal(state(tmp_path / "1")["trainable"], state(tmp_path / "4")["trainable"], 5e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_between_checkpoints_ends_bit_identical(config, tmp_path, kind):
    train(config(kind), tmp_path / "whole", build, quiet=True)
    stopped(lambda: train(config(kind), tmp_path / "broken", build, quiet=True))
    train(config(kind), tmp_path / "broken", build, quiet=True)
    assert_equal(state(tmp_path / "whole")["trainable"], state(tmp_path / "broken")["trainable"])
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")


@pytest.mark.parametrize("kind", ["ar-text", "mdlm-text"])
def test_a_killed_process_started_again_ends_bit_identical(settings, config, tmp_path, kind):
    more = {"training__steps": 60, "training__checkpoint_every": 1, "training__evaluate_every": 60}
    train(config(kind, **more), tmp_path / "whole", build, quiet=True)
    extends, own = settings(kind)
    killed_and_started_again(write_preset(tmp_path / "p.yaml", {**own, **more}, extends=extends), tmp_path / "killed")
    assert_equal(state(tmp_path / "whole")["trainable"], state(tmp_path / "killed")["trainable"])
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


@pytest.mark.parametrize("kind", ["ar-suite", "mdlm-text"])
def test_two_processes_give_the_parameters_of_one(settings, config, tmp_path, kind):
    train(config(kind), tmp_path / "one", build, quiet=True)
    extends, own = settings(kind)
    process = launch(
        [write_preset(tmp_path / "p.yaml", own, extends=extends), "--run-dir", str(tmp_path / "two")], processes=2
    )
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert json.loads((tmp_path / "two" / "provenance.json").read_text())["processes"] == 2
    assert_equal(state(tmp_path / "one")["trainable"], state(tmp_path / "two")["trainable"], 5e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_loads_by_auto_class_and_writes(config, tmp_path, kind):
    final = train(config(kind), tmp_path / "run", build, quiet=True)
    assert final["loss"] > 0
    model = AutoModel.from_pretrained(model_folder(tmp_path / "run"))
    assert isinstance(model, AutoregressiveLM if kind.startswith("ar") else MaskedDiffusionLM)
    assert model.config.length == (12 if kind.endswith("text") else 6)
    assert model.config.vocab_size == (28 if kind.endswith("text") else 15)
    assert getattr(model.config, "time_conditioning", False) == (kind == "mdlm-text")
    average = state(tmp_path / "run")["average"]
    for name, value in model.map.state_dict().items():
        assert torch.equal(value, average[f"module.{name}"]), name
    assert model.generate(torch.tensor([[0, 3]])).shape == (1, model.config.length)


@pytest.mark.parametrize(
    "kind, more, what",
    [
        ("ar-text", {"flow__prior": True}, "flow.prior and flow.path"),
        ("mdlm-text", {"flow__path": "cosine"}, "flow.prior and flow.path"),
        ("ar-text", {"flow__options": {"times": "uniform"}}, "no option 'times'"),
        ("mdlm-text", {"flow__options": {"blanks": "space"}}, "known are time, count"),
        ("mdlm-suite", {"tokenizer__kind": "characters"}, "a suite takes words"),
    ],
)
def test_wrong_options_are_one_line(config, tmp_path, kind, more, what):
    with pytest.raises(ValueError, match=what):
        train(config(kind, **more), tmp_path / "run", build, quiet=True)
