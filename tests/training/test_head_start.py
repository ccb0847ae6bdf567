"""A run that begins with another run's head, and trains it on its own draws."""

import shutil

import pytest
import torch
from accelerate import Accelerator

from mtp import MTPForCausalLM
from tests.training.harness import SMALL, assert_equal, losses, state, stopped
from training.config import load_preset, override
from training.loop import train
from training.mtp_task import build
from training.run_dir import model_folder


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A small run with a head, and the settings of one that goes on from it."""
    run = tmp_path_factory.mktemp("first") / "run"
    config = override(
        load_preset("pairs-10"), head__name="block-chain", head__rank=4, training__steps=4, training__batch_size=8,
        trunk__config={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        **SMALL,
    )  # fmt: skip
    train(config, run, build, quiet=True)
    return run, override(
        config, trunk__pretrained=str(run), trunk__frozen=True, head__start=str(run), head__samples=3, seed=1
    )


def test_the_head_is_the_other_runs_own(first):
    run, config = first
    task = build(config, Accelerator(cpu=True))
    saved = MTPForCausalLM.from_pretrained(model_folder(run))
    assert_equal(task.model.head.state_dict(), saved.head.state_dict())
    fresh = build(override(config, head__start=None), Accelerator(cpu=True)).model.head.state_dict()
    assert any(not torch.equal(fresh[key], value) for key, value in saved.head.state_dict().items())


@pytest.mark.parametrize("kind", ["rloo-overlap", "reinmax-energy"])
def test_an_interrupted_run_on_its_own_draws_ends_as_one_that_was_not(first, tmp_path, kind):
    _, config = first
    config = override(config, head__on_policy=kind, training__steps=6, training__checkpoint_every=3)
    train(config, tmp_path / "whole", build, quiet=True)
    stopped(lambda: train(config, tmp_path / "cut", build, quiet=True), step=5)
    train(config, tmp_path / "cut", build, quiet=True)
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    assert_equal(state(tmp_path / "whole")["trainable"], state(tmp_path / "cut")["trainable"])


def test_a_head_of_another_shape_is_refused_in_one_line(first):
    _, config = first
    for options, words in (
        ({"head__rank": 8}, "head.rank"),
        ({"head__name": "recurrent-chain"}, "block-chain of"),
        ({"head__start": "nowhere"}, "nowhere"),
        ({"head__on_policy": "ppo"}, "known are"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            build(override(config, **options), Accelerator(cpu=True))
        assert "\n" not in str(caught.value)


def test_a_head_that_is_half_a_file_is_refused_in_one_line(first, tmp_path):
    run, config = first
    shutil.copytree(model_folder(run), tmp_path / "half")
    weights = tmp_path / "half" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"^head.start [^\n]* did not load[^\n]*$"):
        build(override(config, head__start=str(tmp_path / "half")), Accelerator(cpu=True))


@pytest.mark.parametrize(
    "asked",
    [{"head__curriculum": 0.5}, {"head__balance": 0.1}, {"head__own_samples": 0.5}, {"head__distill": "hybrid"}],
)
def test_what_is_asked_of_a_head_needs_one(first, asked):
    with pytest.raises(ValueError, match=r"^head\.\w+ needs head.name$"):
        build(override(load_preset("pairs-10"), head__name=None, **asked), Accelerator(cpu=True))
