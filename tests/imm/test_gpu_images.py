"""The image script for one GPU, at a tiny size."""

import json
import sys

from benchmarks import image_objectives
from benchmarks.gpu import images


def test_objectives_are_trained_drawn_and_scored(tmp_path, monkeypatch):
    data, out = tmp_path / "digits.npz", tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["images", "--prepare", str(data), "--name", "digits"])
    images.main()
    small = "--seconds 1 --batch 16 --patch 8 --width 64 --depth 1 --num 80 --objectives flow-matching shortcut"
    monkeypatch.setattr(sys, "argv", ["images", "--data", str(data), "--out", str(out), *small.split()])
    monkeypatch.setattr(images, "STEPS", (1, 4))
    monkeypatch.setattr(image_objectives, "EULER_STEPS", (1, 4))
    images.main()
    found = json.loads(out.read_text())["results"]
    trained = [r for r in found if "contract" in r]
    assert [(r["subject"], r["contract"]["steps"]) for r in trained if r["metric"] == "classifier_fid"] == [
        ("flow-matching", 1), ("flow-matching", 4), ("shortcut", 1), ("shortcut", 4),
    ]  # fmt: skip
    assert all(r["value"] > 0 and r["trained_steps"] > 0 and r["n"] == 80 for r in trained)
    beside = [(r["metric"], r["subject"]) for r in found if "contract" not in r]
    assert beside == [
        ("classifier_fid", "train"),
        ("classifier_fid", "train-resampled"),
        ("nearest_train_distance", "test"),
    ]
    by = {r["subject"]: r["value"] for r in found if r["metric"] == "classifier_fid" and "contract" not in r}
    assert 0 < by["train"] < min(r["value"] for r in trained if r["metric"] == "classifier_fid")
    assert (tmp_path / "shortcut-4.png").exists()
