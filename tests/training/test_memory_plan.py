"""The plan before a training: what follows from shapes, and activations that were counted."""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

import leaplm
from tests.training.harness import SMALL
from training import memory_plan
from training.config import load_preset, override
from training.memory_plan import MIB, MemoryPlan, plan_memory
from training.slices import SliceLoss
from training.tasks import build


def config(preset: str, **more):
    return override(load_preset(preset), **{**SMALL, "training__batch_size": 32, "training__ema": 0.99, **more})


def test_weights_gradients_moments_and_averages_follow_from_the_parameters():
    plan = plan_memory(config("poker", training__accumulation=2))
    size = 4 * plan.parameters
    assert plan.trained == plan.parameters
    assert (plan.gradients, plan.moments, plan.averages) == (size, 2 * size, size)
    assert plan.weights >= size  # and buffers
    assert (plan.samples, plan.slices) == (16, 2)
    assert plan.total == plan.weights + 4 * size + plan.activations


@pytest.mark.parametrize(("preset", "samples"), [("poker", 32), ("imm-digits", 64), ("flow-poker", 32)])
def test_activations_are_linear_in_the_samples(preset, samples):
    """A few groups foretell the whole slice, within what hangs on the samples themselves."""
    wanted = config(preset, training__batch_size=samples, training__precision="float32")
    plan = plan_memory(wanted)
    task = build(wanted, Accelerator(cpu=True))
    module = SliceLoss(task.model, task.objective, "float32")
    if task.objective.teacher_decay is not None:
        module.teach(task.model)
    whole = memory_plan._kept(module, task, samples, wanted, torch.device("cpu"))
    assert plan.activations == pytest.approx(whole, rel=0.1)
    assert plan.each * samples > whole / 2


def test_what_does_not_fit_is_one_line_with_the_mend(monkeypatch, capsys):
    monkeypatch.setattr(memory_plan, "_free", lambda device: 2 * MIB)
    assert leaplm.main(["train", "poker", "--plan"]) == 2
    shown = capsys.readouterr()
    assert "activations" in shown.out
    assert shown.err.startswith("leaplm: ") and shown.err.count("\n") == 1
    assert "--training.accumulation 8 would fit" in shown.err


def test_the_fewest_slices_that_fit_hold_whole_groups():
    plan = MemoryPlan(
        parameters=0, trained=0, weights=10, gradients=0, moments=0, averages=0, fixed=2, each=1, samples=24, slices=1,
        group=1, precision="float32", free=20,
    )  # fmt: skip
    assert plan.fitting_slices() == 3  # 10 + 2 + 8
    assert replace(plan, group=6).fitting_slices() == 4
    assert replace(plan, group=12).fitting_slices() is None
