"""Losses of the head beyond the likelihood in whole runs: cut into micro-batches, interrupted, in several processes."""

import json

import pytest

from tests.training.harness import SMALL, assert_equal, launch, losses, state, stopped, write_preset
from training.config import load_preset, override
from training.loop import train
from training.mtp_task import build

OPTIONS = {
    "curriculum": {"head__name": "recurrent-chain", "head__rank": 8, "head__curriculum": 0.5},
    "balance": {"head__name": "mixture", "head__options": {"components": 3}, "head__balance": 0.1},
    "own samples": {"head__name": "block-chain", "head__rank": 8, "head__own_samples": 0.4},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("losses")
    (folder / "corpus.txt").write_text(
        "\n".join(f"{'abcdefgh'[i % 8] * (i % 5 + 1)} is {i * i % 97}" for i in range(100))
    )
    settings = dict(
        data__name=str(folder / "corpus.txt"), data__sample_by="line", data__length=16, tokenizer__vocab_size=300,
        trunk__config={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        head__block_size=3, training__steps=8, training__batch_size=8, training__checkpoint_every=3,
        training__evaluate_every=4, **SMALL,
    )  # fmt: skip
    train(config(settings), folder / "trunk", build, quiet=True)
    return {**settings, "trunk__pretrained": str(folder / "trunk"), "trunk__frozen": True}


def config(settings, **more):
    return override(load_preset("stdlib-trunk"), **{**settings, **more})


def metrics(run, split="train"):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
def test_accumulation_changes_nothing_but_rounding(text, tmp_path, name, frozen):
    for accumulation in (1, 4):
        settings = config(text, **OPTIONS[name], training__accumulation=accumulation, trunk__frozen=frozen)
        train(settings, tmp_path / str(accumulation), build, quiet=True)
    assert_equal(state(tmp_path / "1")["trainable"], state(tmp_path / "4")["trainable"], 2e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_stopped_between_checkpoints_ends_bit_identical(text, tmp_path, name):
    settings = config(text, **OPTIONS[name])
    train(settings, tmp_path / "whole", build, quiet=True)
    stopped(lambda: train(settings, tmp_path / "broken", build, quiet=True))
    train(settings, tmp_path / "broken", build, quiet=True)
    assert_equal(state(tmp_path / "whole")["trainable"], state(tmp_path / "broken")["trainable"])
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")


@pytest.mark.parametrize("name", OPTIONS)
def test_two_processes_give_the_parameters_of_one(text, tmp_path, name):
    train(config(text, **OPTIONS[name]), tmp_path / "one", build, quiet=True)
    preset = write_preset(tmp_path / "p.yaml", {**text, **OPTIONS[name]})
    process = launch([preset, "--run-dir", str(tmp_path / "two")], processes=2)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert_equal(state(tmp_path / "one")["trainable"], state(tmp_path / "two")["trainable"], 2e-5)


def test_the_base_is_reported_while_it_is_taught_and_on_held_out_text(text, tmp_path):
    train(config(text, **OPTIONS["curriculum"]), tmp_path / "run", build, quiet=True)
    assert [("base_nll" in line) for line in metrics(tmp_path / "run")] == [True, True, True, False, False]
    assert all("base_nll" in line for line in metrics(tmp_path / "run", "validation"))


@pytest.mark.parametrize("name, metric", [("balance", "usage_entropy"), ("own samples", "own_acceptance")])
def test_what_these_losses_work_on_is_reported(text, tmp_path, name, metric):
    train(config(text, **OPTIONS[name]), tmp_path / "run", build, quiet=True)
    assert all(0 < line[metric] < 1.1 for line in metrics(tmp_path / "run"))  # ln 3 nats; a share


def test_own_samples_do_the_same_beside_cached_states_and_nearly_in_bf16(text, tmp_path):
    variants = {"memory": {}, "cached": {"trunk__cache_states": True}, "bf16": {"training__precision": "bfloat16"}}
    for name, more in variants.items():
        train(config(text, **OPTIONS["own samples"], **more), tmp_path / name, build, quiet=True)
    kept = {name: state(tmp_path / name)["trainable"] for name in variants}
    assert_equal(kept["memory"], kept["cached"], 2e-5)
    pairs = list(zip(losses(tmp_path / "memory"), losses(tmp_path / "bf16"), strict=True))
    assert all(one[2] == pytest.approx(other[2], rel=0.02) for one, other in pairs)


@pytest.mark.parametrize(
    "more, words",
    [
        ({"head__name": "independent", "head__curriculum": 0.5}, "head.curriculum is for chains"),
        ({"head__name": "block-chain", "head__balance": 0.1}, "head.balance is for mixtures"),
        ({"head__name": "flow-map", "head__own_samples": 0.5}, "no conditional laws"),
    ],
)
def test_a_head_that_cannot_be_taught_so_says_it(text, tmp_path, more, words):
    with pytest.raises(NotImplementedError, match=words):
        train(config(text, **more), tmp_path / "run", build, quiet=True)
