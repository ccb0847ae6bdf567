"""Image runs on the same loop: groups, teachers and a learned weight change nothing of what it promises."""

import json

import pytest
import torch
from transformers import AutoModel

from flowmap.objectives import OBJECTIVES, Consistency
from imm.model import ImageFlow
from tests.training.harness import (
    ROOT,
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
from training.objectives import build_objective
from training.run_dir import model_folder
from training.tasks import build

TINY = dict(
    image__patch=4, image__width=16, image__depth=1, image__heads=2, training__batch_size=16,
    training__steps=8, training__checkpoint_every=3, training__evaluate_every=4, optimizer__warmup=2, **SMALL,
)  # fmt: skip
KINDS = {
    "imm": {"image__options": {"k": 6, "group_size": 4}},
    "terminal-velocity": {"image__objective": "terminal-velocity", "image__options": {"learned_weight": True}},
    "shortcut": {"image__objective": "shortcut"},
}


def config(kind="imm", **more):
    base = load_preset("imm-digits" if kind == "imm" else "configs/_digits.yaml")
    return override(base, **{**TINY, **KINDS[kind], **more})


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_changes_nothing_but_rounding(tmp_path, kind):
    for accumulation in (1, 4):
        train(config(kind, training__accumulation=accumulation), tmp_path / str(accumulation), build, quiet=True)
    one, other = state(tmp_path / "1"), state(tmp_path / "4")
    assert_equal(one["trainable"], other["trainable"], 5e-5)
    assert_equal(one["objective"], other["objective"], 5e-5)


def test_the_seed_draws_the_objectives_own_weights_too(tmp_path):
    for place in ("a", "b"):
        torch.manual_seed(ord(place))  # whatever was drawn before
        train(config("terminal-velocity", training__steps=2), tmp_path / place, build, quiet=True)
    assert_equal(state(tmp_path / "a")["objective"], state(tmp_path / "b")["objective"])


def test_groups_never_straddle_a_slice(tmp_path):
    with pytest.raises(ValueError, match="whole groups of 4"):
        train(config(training__accumulation=8), tmp_path / "run", build, quiet=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_between_checkpoints_ends_bit_identical(tmp_path, kind):
    train(config(kind), tmp_path / "whole", build, quiet=True)
    stopped(lambda: train(config(kind), tmp_path / "broken", build, quiet=True))
    train(config(kind), tmp_path / "broken", build, quiet=True)
    whole, broken = state(tmp_path / "whole"), state(tmp_path / "broken")
    for part in ("trainable", "objective", *(["teacher"] if OBJECTIVES[kind].teacher_decay else [])):
        assert_equal(whole[part], broken[part])
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")


def test_a_killed_process_started_again_ends_bit_identical(tmp_path):
    more = {"training__steps": 60, "training__checkpoint_every": 1, "training__evaluate_every": 60}
    kind = "terminal-velocity"  # the one with a teacher and weights of its own
    train(config(kind, **more), tmp_path / "whole", build, quiet=True)
    preset = write_preset(
        tmp_path / "p.yaml", {**TINY, **KINDS[kind], **more}, extends=str(ROOT / "configs/_digits.yaml")
    )
    killed_and_started_again(preset, tmp_path / "killed")
    whole, killed = state(tmp_path / "whole"), state(tmp_path / "killed")
    for part in ("trainable", "objective", "teacher"):
        assert_equal(whole[part], killed[part])
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


def test_a_teacher_is_the_average_at_the_objectives_own_decay(tmp_path):
    train(config("terminal-velocity", training__ema=0.2), tmp_path / "run", build, quiet=True)
    kept = state(tmp_path / "run")
    teacher = {k.removeprefix("module."): v for k, v in kept["teacher"].items() if k.startswith("module.")}
    assert set(teacher) == set(kept["trainable"])
    assert any(not torch.equal(teacher[k], kept["trainable"][k]) for k in teacher)
    averaged = {k.removeprefix("module."): v for k, v in kept["average"].items() if k.startswith("module.")}
    assert any(not torch.equal(teacher[k], averaged[k]) for k in teacher)


def test_two_processes_give_the_parameters_of_one(tmp_path):
    train(config(), tmp_path / "one", build, quiet=True)
    preset = write_preset(tmp_path / "p.yaml", {**TINY, **KINDS["imm"]}, extends="imm-digits")
    process = launch([preset, "--run-dir", str(tmp_path / "two")], processes=2)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert json.loads((tmp_path / "two" / "provenance.json").read_text())["processes"] == 2
    assert_equal(state(tmp_path / "one")["trainable"], state(tmp_path / "two")["trainable"], 5e-5)


def test_what_is_saved_loads_by_auto_class_and_draws_the_same(tmp_path):
    final = train(config(), tmp_path / "run", build, quiet=True)
    assert final["energy_distance_1"] > 0 and {"loss", "mmd2", "energy_distance_4"} <= set(final)
    folder = model_folder(tmp_path / "run")
    model = AutoModel.from_pretrained(folder)
    assert isinstance(model, ImageFlow) and model.config.t_max == 0.994
    x, t = torch.randn(3, *model.shape), torch.full((3,), 0.5)
    again = ImageFlow.from_pretrained(folder)
    context = model.condition(torch.tensor([0, 1, 10]))
    assert torch.equal(model.map.jump(x, t, t / 2, context), again.map.jump(x, t, t / 2, context))
    assert model.images(x).shape == (3, 8, 8, 1)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_an_image_model(tmp_path, name):
    settings = override(
        load_preset("configs/_digits.yaml"),
        **{**TINY, "image__objective": name, "training__batch_size": 64, "training__steps": 2, "training__ema": None},
        image__conditional=OBJECTIVES[name].takes_classes,
    )
    final = train(settings, tmp_path / name, build, quiet=True)
    assert all(value == value for value in final.values())


def test_an_objective_that_knows_no_classes_says_so(tmp_path):
    settings = override(load_preset("configs/_digits.yaml"), image__objective="drifting")
    with pytest.raises(ValueError, match="drifting knows no classes: set image"):
        train(settings, tmp_path, build, quiet=True)


def test_what_is_scheduled_is_validated_where_it_stands(tmp_path, monkeypatch):
    heard, forward = [], Consistency.forward

    def listening(self, model, batch, *, step, **more):
        heard.append((model.training, step))
        return forward(self, model, batch, step=step, **more)

    monkeypatch.setattr(Consistency, "forward", listening)
    settings = override(load_preset("configs/_digits.yaml"), **{**TINY, "image__objective": "consistency"})
    train(settings, tmp_path / "run", build, quiet=True)
    assert {step for training, step in heard if not training} == {3, 7}


def test_consistency_is_refused_a_map_that_is_not_held_to_the_data(tmp_path):
    settings = override(load_preset("imm-mnist"), image__name="digits", image__patch=8, image__objective="consistency")
    settings.image.options = {}
    with pytest.raises(ValueError, match="lets go of the data near it, where consistency learns from it: take simple"):
        train(settings, tmp_path, build, quiet=True)


def test_an_objective_is_refused_a_path_whose_identities_it_uses_before_its_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr("flowmap.objectives.MeanFlow.forward", None)
    settings = override(
        load_preset("configs/_digits.yaml"), **{**TINY, "image__objective": "mean-flow", "image__path": "cosine"}
    )
    with pytest.raises(ValueError, match="MeanFlow uses identities of the linear path"):
        train(settings, tmp_path, build, quiet=True)


def test_wrong_options_are_one_line():
    plan = load_preset("imm-digits").image
    with pytest.raises(ValueError, match="unknown objective 'im'"):
        build_objective("image", override(load_preset("imm-digits"), image__objective="im").image, OBJECTIVES)
    with pytest.raises(ValueError, match="imm has no option 'sharpness'; it has group_size, k"):
        build_objective("image", override(load_preset("imm-digits"), image__options={"sharpness": 1}).image, OBJECTIVES)
    assert plan is not None and build_objective("image", plan, OBJECTIVES).group_size == 4
