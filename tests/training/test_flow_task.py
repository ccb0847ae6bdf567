"""Flow language models on the same loop: known tokens, teachers and codes change nothing of what it promises."""

import json

import pytest
import torch
from transformers import AutoModel

from flowlm import FlowLM
from flowmap.objectives.tokens import TOKEN_OBJECTIVES
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
KINDS = {
    "suite": {"flow__codebook": "embedding"},
    "teacher": {"flow__options": {"teacher_decay": 0.9, "boundary": 0.5}},
    "blocks": {
        "data__suite": "brackets-8", "flow__block_lengths": [1, 4, 12], "flow__noise": "block",
        "flow__codebook": "embedding",
    },
    "tokens": {"flow__noise": "token", "flow__causal": True},
    "text": {"data__suite": None, "data__length": 12, "flow__prompts": 0.5, "tokenizer__kind": "bpe"},
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for i in range(6):
        (folder / f"{i}.txt").write_text("".join(f"row {j} of page {i} says {j * i % 7}\n" for j in range(40)))
    return str(folder)


@pytest.fixture
def config(text):
    def make(kind="suite", **more):
        where = {"data__name": text, "tokenizer__vocab_size": 300} if kind == "text" else {}
        return override(load_preset("flow-poker"), **{**TINY, **KINDS[kind], **where, **more})

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
    whole, broken = state(tmp_path / "whole"), state(tmp_path / "broken")
    for part in ("trainable", *(["teacher"] if kind == "teacher" else [])):
        assert_equal(whole[part], broken[part])
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")


def test_a_killed_process_started_again_ends_bit_identical(config, tmp_path):
    more = {"training__steps": 60, "training__checkpoint_every": 1, "training__evaluate_every": 60}
    train(config("teacher", **more), tmp_path / "whole", build, quiet=True)
    preset = write_preset(tmp_path / "p.yaml", {**TINY, **KINDS["teacher"], **more}, extends="flow-poker")
    killed_and_started_again(preset, tmp_path / "killed")
    for part in ("trainable", "teacher"):
        assert_equal(state(tmp_path / "whole")[part], state(tmp_path / "killed")[part])
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


def test_two_processes_give_the_parameters_of_one(config, tmp_path):
    train(config("teacher"), tmp_path / "one", build, quiet=True)
    preset = write_preset(tmp_path / "p.yaml", {**TINY, **KINDS["teacher"]}, extends="flow-poker")
    process = launch([preset, "--run-dir", str(tmp_path / "two")], processes=2)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert json.loads((tmp_path / "two" / "provenance.json").read_text())["processes"] == 2
    assert_equal(state(tmp_path / "one")["trainable"], state(tmp_path / "two")["trainable"], 5e-5)


@pytest.mark.parametrize("kind", ["suite", "text"])
def test_what_is_saved_loads_bit_equal_by_auto_class_and_writes(config, tmp_path, kind):
    final = train(config(kind), tmp_path / "run", build, quiet=True)
    assert {"loss", "cross_entropy", "few_step_kl"} <= set(final)
    model = AutoModel.from_pretrained(model_folder(tmp_path / "run"))
    assert isinstance(model, FlowLM) and model.config.length == (12 if kind == "text" else 6)
    model.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again")
    assert_equal(model.state_dict(), again.state_dict())
    torch.manual_seed(1)
    texts = model.generate(torch.tensor([[0, 3]]), num_steps=2, do_sample=True)
    torch.manual_seed(1)
    assert torch.equal(texts, again.generate(torch.tensor([[0, 3]]), num_steps=2, do_sample=True))


def test_prompts_of_a_suite_are_known_and_of_text_as_often_as_asked(config, tmp_path):
    def batch(kind, **more):
        from accelerate import Accelerator

        return build(config(kind, **more), Accelerator(cpu=True)).train.batch(0, torch.arange(400))

    hand = batch("suite")
    assert hand.scored.sum(1).tolist() == [2] * 400 and (hand.context.at == ~hand.scored).all()
    told = batch("text").context.at
    share = (told.sum(1) > 0).float().mean()
    assert 0.38 < share < 0.54  # half of the windows, one in twelve of which is told nothing after all
    assert (told.long().diff(dim=1) <= 0).all() and not told.all(1).any()  # beginnings, never whole windows
    assert batch("text", flow__prompts=0.0).context is None


@pytest.mark.parametrize("name", TOKEN_OBJECTIVES)
def test_every_objective_trains_a_flow_language_model(config, tmp_path, name):
    settings = override(config(), flow__objective=name)
    settings.flow.options.clear()
    assert train(settings, tmp_path / "run", build, quiet=True)["loss"] > 0


@pytest.mark.parametrize("law", ["uniform", "logit-normal", "decode-error", "decode-error-mixed"])
def test_every_law_of_time_by_name(config, tmp_path, law):
    settings = config(flow__options={"times": law}, flow__codebook="one-hot")
    assert train(settings, tmp_path / "run", build, quiet=True)["loss"] > 0


def test_block_lengths_are_drawn_for_each_sample_and_levels_follow_them(config):
    def batch(rows, **more):
        from accelerate import Accelerator

        return build(config("blocks", **more), Accelerator(cpu=True)).train.batch(3, rows)

    rows = torch.arange(600)
    whole = batch(rows)
    assert torch.equal(whole.context.tokens, whole.tokens) and (whole.context.known.at == ~whole.scored).all()
    often = torch.bincount(whole.context.size, minlength=13)
    assert often[[1, 4, 12]].min() > 160 and often.sum() == 600
    assert torch.equal(whole.levels, torch.arange(12) // whole.context.size[:, None])
    assert torch.equal(batch(rows[7:9]).context.size, whole.context.size[7:9])
    assert batch(rows, flow__noise="sample").levels is None
    assert (batch(rows, flow__noise="token").levels == torch.arange(12)).all()


def test_wrong_options_are_one_line(config, tmp_path):
    with pytest.raises(ValueError, match="has no option 'boundary'; it has times, t_min"):
        settings = config(flow__objective="cross-entropy")  # which takes none of what the preset says
        settings.flow.options = {"boundary": 0.5}
        train(settings, tmp_path / "run", build, quiet=True)
    with pytest.raises(ValueError, match="cross-entropy, kl-psd do not"):
        settings = config("tokens", flow__objective="vlb")
        settings.flow.options.clear()
        train(settings, tmp_path / "run", build, quiet=True)
    for more, what in (
        ({"flow__objective": "leap"}, "known are cross-entropy"),
        ({"flow__options": {"boundry": 1}}, "no option 'boundry'"),
        (
            {"flow__codebook": "one-hot", "flow__options": {"times": "noon"}},
            "known are uniform, logit-normal, decode-error",
        ),
        (
            {"flow__codebook": "embedding", "flow__options": {"times": "decode-error"}},
            "known are uniform, logit-normal$",
        ),
        ({"flow__options": {"diagonal": "x"}}, "must be a number"),
        ({"head__name": "independent"}, "exclude each other"),
        ({"flow__block_lengths": [4]}, r"4 does not divide a window of 6: \[1, 2, 3, 6\] do"),
        ({"flow__noise": "block"}, "needs block lengths"),
    ):
        with pytest.raises(ValueError, match=what):
            train(config(**more), tmp_path / "run", build, quiet=True)
