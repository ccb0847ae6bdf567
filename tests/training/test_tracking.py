"""Trackers by name: told what metrics.jsonl is told, without a trace in the result."""

import json

import pytest

import training.tracking
from tests.training.harness import assert_equal, launch, state
from training.config import load_preset, override
from training.loop import train
from training.mtp_task import build
from training.tracking import flat, log_with


def config(**more):
    quick = {"training__steps": 6, "training__batch_size": 16, "training__log_every": 2, "training__evaluate_every": 3}
    return override(load_preset("poker"), training__threads=1, training__evaluate_batches=1, **quick, **more)


def written(run):
    """What metrics.jsonl says, as (name, step) → value."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        (f"{r['split']}/{name}", r["step"]): value for r in lines for name, value in r.items() if name not in ("step", "split")
    }  # fmt: skip


def test_tensorboard_is_told_what_the_run_writes_down(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'leaplm[trackers]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(config(training__tracker="tensorboard"), tmp_path / "told", build, quiet=True)
    train(config(), tmp_path / "alone", build, quiet=True)
    assert_equal(state(tmp_path / "told")["trainable"], state(tmp_path / "alone")["trainable"])
    assert not (tmp_path / "alone" / "trackers").exists()
    events = EventAccumulator(str(tmp_path / "told" / "trackers" / "leaplm")).Reload()
    found = {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
    wanted = written(tmp_path / "told")
    assert {("train/loss", 6), ("validation/nll_1", 3)} <= wanted.keys() and found.keys() == wanted.keys()
    assert all(found[key] == pytest.approx(wanted[key], rel=1e-5) for key in wanted)
    (kept,) = (tmp_path / "told" / "trackers").rglob("hparams.yml")
    assert "optimizer.lr: 0.01" in kept.read_text()


def test_wandb_offline_is_told_and_keeps_it_in_the_runs_folder(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install wandb")
    for name, value in {"MODE": "offline", "SILENT": "true", "CACHE_DIR": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    quick = ["--training.steps", "2", "--training.batch-size", "16", "--training.threads", "1"]
    # a process of its own, at whose end wandb's file is whole
    process = launch(["poker", "--run-dir", str(tmp_path / "told"), "--training.tracker", "wandb", *quick])
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    (kept,) = (tmp_path / "told" / "trackers").rglob("*.wandb")
    assert b"validation/nll_1" in kept.read_bytes()


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_one_line(tmp_path, monkeypatch, tracker):
    monkeypatch.setattr(training.tracking, "get_available_trackers", list)
    with pytest.raises(ValueError, match=rf"training.tracker {tracker} is not installed: pip install") as raised:
        log_with(tracker, tmp_path)
    assert "\n" not in str(raised.value)


def test_an_unknown_tracker_is_refused_by_name():
    with pytest.raises(ValueError, match=r"training\.tracker"):
        config(training__tracker="notebook")


def test_the_configuration_is_told_by_dotted_keys_as_plain_values():
    values = flat(config())
    assert values["optimizer.lr"] == 0.01 and values["data.suite"] == "poker" and "image" not in values
    assert all(isinstance(value, int | float | bool | str) for value in values.values())
