"""What each way of training a trunk changes, and that adapters leave a plain trunk behind."""

import json
import subprocess
import sys

import pytest
import torch

from mtp import MTPForCausalLM
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
from training.mtp_task import build
from training.run_dir import model_folder

pytest.importorskip("peft")
RANK = 2


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Settings of a head on a small trained trunk, which is neither frozen nor adapted."""
    folder = tmp_path_factory.mktemp("adapters")
    (folder / "corpus.txt").write_text(
        "\n".join(f"{'abcdefgh'[i % 8] * (i % 5 + 1)} is {i * i % 97}" for i in range(100))
    )
    settings = dict(
        data__name=str(folder / "corpus.txt"), data__sample_by="line", data__length=16, tokenizer__vocab_size=300,
        trunk__config={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        head__block_size=3, head__rank=8, training__steps=8, training__batch_size=8, training__checkpoint_every=3,
        training__evaluate_every=4, **SMALL,
    )  # fmt: skip
    train(config(settings), folder / "trunk", build, quiet=True)
    return {**settings, "head__name": "block-chain", "trunk__pretrained": str(folder / "trunk")}


def config(settings, **more):
    return override(load_preset("stdlib-trunk"), **{**settings, **more})


def saved(run):
    """Weights by name, a tied one once."""
    return dict(MTPForCausalLM.from_pretrained(model_folder(run)).requires_grad_(False).named_parameters())


WAYS = {"frozen": {"trunk__frozen": True}, "lora": {"trunk__lora": RANK}, "full": {}}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_trains_what_it_should_and_nothing_else(text, tmp_path, way):
    before = saved(text["trunk__pretrained"])
    train(config(text, **WAYS[way]), tmp_path / "run", build, quiet=True)
    after, kept = saved(tmp_path / "run"), state(tmp_path / "run")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    maps = {name for name in before if name.endswith("proj.weight")}
    assert changed == {"frozen": set(), "lora": maps, "full": set(before)}[way] and len(maps) == 7
    assert {name for name in kept["trainable"] if name.startswith("head.")} == (
        set() if way == "frozen" else {name for name in after if name.startswith("head.")}
    )
    moments = sum(len(group["params"]) for made in kept["optimizers"] for group in made["param_groups"])
    head = len(after) - len(before)
    assert moments == head + {"frozen": 0, "lora": 2 * len(maps), "full": len(before)}[way]
    if way == "lora":  # a product of rank 2, on top of what was there
        delta = {name: after[name] - before[name] for name in maps}
        assert all(torch.linalg.matrix_rank(d, atol=1e-5).item() == RANK for d in delta.values())
        facts = json.loads((tmp_path / "run" / "provenance.json").read_text())
        assert facts["parameters"] == sum(value.numel() for value in after.values())


@pytest.mark.parametrize("ema", [0.999, None])
def test_what_is_saved_is_the_trunk_plus_the_averaged_product(text, tmp_path, ema):
    train(config(text, trunk__lora=RANK, training__ema=ema), tmp_path / "run", build, quiet=True)
    kept, before, after = state(tmp_path / "run"), saved(text["trunk__pretrained"]), saved(tmp_path / "run")
    source = kept["trainable"] if ema is None else kept["average"]
    weights = [value for name, value in source.items() if "adapters." in name]
    maps = [name for name in before if name.endswith("proj.weight")]  # in the order of the trunk's modules
    for name, (a, b) in zip(maps, zip(weights[::2], weights[1::2], strict=True), strict=True):
        assert torch.allclose(after[name], before[name] + b @ a, atol=1e-6)


def test_accumulation_changes_nothing_but_rounding(text, tmp_path):
    for accumulation in (1, 4):
        settings = config(text, trunk__lora=RANK, training__accumulation=accumulation)
        train(settings, tmp_path / str(accumulation), build, quiet=True)
    assert_equal(state(tmp_path / "1")["trainable"], state(tmp_path / "4")["trainable"], 2e-5)


def test_two_processes_give_the_parameters_of_one(text, tmp_path):
    settings = {**text, "trunk__lora": RANK}
    train(config(settings), tmp_path / "one", build, quiet=True)
    process = launch([write_preset(tmp_path / "p.yaml", settings), "--run-dir", str(tmp_path / "two")], processes=2)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert_equal(saved(tmp_path / "one"), saved(tmp_path / "two"), 2e-5)


def test_a_run_stopped_between_checkpoints_ends_bit_identical(text, tmp_path):
    settings = config(text, trunk__lora=RANK)
    train(settings, tmp_path / "whole", build, quiet=True)
    stopped(lambda: train(settings, tmp_path / "broken", build, quiet=True))
    train(settings, tmp_path / "broken", build, quiet=True)
    assert_equal(saved(tmp_path / "whole"), saved(tmp_path / "broken"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")


def test_a_killed_process_started_again_ends_bit_identical(text, tmp_path):
    settings = {**text, "trunk__lora": RANK, "training__steps": 60, "training__checkpoint_every": 1}
    settings["training__evaluate_every"] = 60
    train(config(settings), tmp_path / "whole", build, quiet=True)
    killed_and_started_again(write_preset(tmp_path / "p.yaml", settings), tmp_path / "killed")
    assert_equal(state(tmp_path / "whole")["trainable"], state(tmp_path / "killed")["trainable"])


def test_what_is_saved_loads_without_peft(text, tmp_path):
    train(config(text, trunk__lora=RANK), tmp_path / "run", build, quiet=True)
    script = f"""
import sys
sys.modules["peft"] = None
from eval.loading import load_run
assert load_run({str(tmp_path / "run")!r}).block_size == 3
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.parametrize("more", [{"trunk__frozen": True}, {"trunk__pretrained": None}])
def test_adapters_without_a_trunk_to_adapt_are_refused(text, tmp_path, more):
    with pytest.raises(ValueError, match=r"trunk.lora adapts what trunk.pretrained names"):
        train(config(text, trunk__lora=RANK, **more), tmp_path / "run", build, quiet=True)


def test_a_missing_peft_is_one_line(text, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"pip install 'leaplm\[peft\]'"):
        train(config(text, trunk__lora=RANK), tmp_path / "run", build, quiet=True)
