"""The three claims from end to end, on trainings of a few steps: cells, records, pictures."""

import numpy as np
import pytest
import torch

from benchmarks import claim_moments, claims, image_objectives, images
from benchmarks.images import VARIANTS
from eval.records import read_records, record, write_records
from flowmap.objectives import InductiveMomentMatching
from imm.data import load_images
from imm.model import ImageFlow, ImageFlowConfig

SECONDS = 1.0


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "RESULTS", tmp_path / "cells")
    monkeypatch.setattr(image_objectives, "EULER_STEPS", (1, 2, 3))
    monkeypatch.setattr(image_objectives, "STEPS", (1, 2))
    monkeypatch.setattr(images, "SCORED_IN_FULL", (1,))
    monkeypatch.setattr(images, "SNAPSHOTS", 3)
    monkeypatch.setattr(claims, "STEPS", (1, 2))
    costs = [record("latency", SECONDS / 6, on="digits", subject=name, kind="estimate", unit="s") for name in VARIANTS]
    write_records(tmp_path / "cells" / "digits-costs.json", ["test"], costs)
    return tmp_path


def test_each_claim_ends_in_records_and_a_picture_and_nothing_is_trained_twice(here, monkeypatch, capsys):
    told = ["claims", "--seeds", "0", "--seconds", str(SECONDS), "--runs", str(here / "runs")]
    monkeypatch.setattr("sys.argv", told)
    claims.main()
    said = capsys.readouterr().out
    assert set(claims.CLAIMS) == set(claims.claims())
    for claim in claims.CLAIMS:
        assert (here / "cells" / "claims" / f"digits-{claim}.svg").read_text().startswith("<?xml")
        assert read_records(here / "cells" / "claims" / f"digits-{claim}.json")
    assert "FID without s over FID with it" in said and "seed by seed" in said and said.count("Spearman") == 6
    moments = read_records(here / "cells" / "claims" / "digits-moments.json")
    assert all(r["interval"][0] <= r["value"] <= r["interval"][1] for r in moments)
    snapshots = read_records(here / "cells" / "claims" / "digits-moments-0.json")
    assert {r["trained_steps"] for r in snapshots} == {2, 4, 6}  # of the cell's own run
    cell = read_records(here / "cells" / "digits-imm-0.json")
    assert all(r["training_cpu_seconds"] > 0 for r in cell if r["subject"] == "imm")
    monkeypatch.setattr(images, "train", None)
    monkeypatch.setattr(claim_moments, "train", None)
    claims.main()


def test_the_moments_are_those_of_a_model_in_full_precision(monkeypatch):
    """And the model itself is left as it was."""
    digits = load_images("digits")
    config = ImageFlowConfig(
        channels=1, height=8, width_pixels=8, patch=8, backbone={"width": 8, "depth": 1, "heads": 1}
    )
    model, told = ImageFlow(config), []
    monkeypatch.setattr(claim_moments, "InductiveMomentMatching", lambda **more: Listening(told, **more))
    value, size = claim_moments.held_out_mmd(model, digits, "energy")
    assert np.isfinite(value) and size == 352  # whole groups of 32 of 359
    assert set(told) == {torch.float64} and next(model.parameters()).dtype == torch.float32


class Listening(InductiveMomentMatching):
    def __init__(self, told, **more):
        super().__init__(**more)
        self.told = told

    def forward(self, model, batch, **more):
        self.told += [batch.x_0.dtype, next(model.parameters()).dtype]
        return super().forward(model, batch, **more)


def test_a_correlation_has_an_interval_over_snapshots():
    rising = ([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 5.0, 4.0])
    value, low, high = claim_moments.correlation([rising, rising])
    assert value == pytest.approx(0.9) and low < value <= high <= 1
