"""PPL(B, K): the picture holds what the records say, and the benchmark that measures them resumes."""

import json
import math
import re
import sys

import pytest

from benchmarks import surface
from eval.pictures import beside
from eval.records import record
from eval.surface import ENDLESS, by_block, levels, surface_sections
from training.flow_models import OBJECTIVES
from training.flow_start import denoise_first


def nll(value, subject="flow", estimator="k-step", kind="bound", seed=0, on="words", **contract):
    contract = {"estimator": estimator, "nfe": 1, **contract}
    return record(
        "nll", value, on=on, subject=subject, unit="nats/token", kind=kind, train_seed=seed, stderr=0.01,
        stderr_over="monte-carlo", contract=contract,
    )  # fmt: skip


def timed(value, subject="flow", **contract):
    contract |= {"batch": 4, "device": "cpu", "threads": 1}
    return record("tokens_per_second", value, on="words", subject=subject, unit="tokens/s", kind="estimate", contract=contract)  # fmt: skip


RECORDS = [
    *[nll(2 - b / 10 - k / 100, block=b, steps=k, seed=s) for b in (1, 4) for k in (0, 2) for s in (0, 1)],
    nll(1.5, estimator="vlb", block=4, steps=None),
    nll(1.2, kind="exact", block=1, steps=0, state="zero"),
    nll(1.1, subject="ar", estimator="exact", kind="exact", steps=None),
    record("entropy", 1.0, on="words", subject="law", unit="nats/token", kind="exact", contract={}),
    timed(1000.0, block=1, steps=0),
    timed(3000.0, block=4, steps=2),
    timed(2000.0, subject="ar"),
]


@pytest.mark.parametrize("on", surface.PLAN)
def test_the_three_models_of_a_plan_differ_in_their_outer_loop_alone(on):
    for kind in ("blocks", "whole", "autoregressive"):
        plan = surface.planned(on, kind, 0, {}).flow
        objective = OBJECTIVES[plan.objective]() if kind == "autoregressive" else OBJECTIVES[plan.objective](0.5)
        denoise_first(objective, plan.denoiser_first, 10)
        assert bool(plan.block_lengths) == (kind == "blocks")


def test_a_line_a_block_length_and_a_point_a_number_of_steps():
    lines = by_block(RECORDS)
    assert {name: list(line) for name, line in lines.items()} == {"flow, B = 1": [0, 2], "flow, B = 4": [0, 2, ENDLESS]}
    mean = lines["flow, B = 4"][2]
    assert mean["value"] == pytest.approx(1.58) and mean["seeds"] == [0, 1] and mean["stderr_over"] == "seeds"
    assert set(levels(RECORDS)) == {"flow, B = 1, K = 0 from zero", "ar", "entropy of the law"}


def test_the_picture_has_every_point_and_the_axis_names_the_steps():
    steps, speed = surface_sections(RECORDS)
    assert steps.picture.count("<circle") == 5 + 2 * 3  # the points, and two ends of each level
    for name in ("flow, B = 1", "flow, B = 4", "entropy of the law", ">∞<", ">2<"):
        assert name in steps.picture
    assert speed.picture.count("<circle") == 3 and "K = 2" in speed.picture and "4 windows at once" in speed.text
    places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', steps.picture)[:2]]
    assert places[0] < places[1]


def test_without_a_plane_there_is_no_picture():
    assert surface_sections([nll(2.0, steps=1)]) == []
    assert surface_sections([nll(2.0, block=4, steps=1), nll(2.0, block=4, steps=1, on="other")]) == []


def test_heads_stand_between_independent_and_exact():
    def head(subject, steps, value, kind="exact"):
        contract = {"block": 4, "steps": steps}
        return record("block_nll", value, on="words", subject=subject, unit="nats/token", kind=kind, contract=contract)

    chains = [head("independent", 1, 2.0), head("chain", 1, 1.1)]
    assert surface_sections(chains) == []  # a table says as much
    steps = [head("flow-map", n, 2.0 - n / 4, "bound") for n in (1, 2, 3)]
    (section,) = surface_sections([*chains, *steps, RECORDS[-4]])
    assert section.picture.count("<circle") == 3 + 2 * 3 and "flow-map, bound" in section.picture


def test_pictures_stand_beside_each_other():
    steps, speed = surface_sections(RECORDS)
    both = beside([steps.picture, speed.picture], "both")
    wide = [float(re.findall(r'viewBox="0 0 (\d+)', picture)[0]) for picture in (steps.picture, speed.picture, both)]
    assert wide[2] == wide[0] + wide[1] and f'x="{wide[0]:.0f}"' in both


SMALL = [
    "training.steps=4", "training.batch_size=16", "training.evaluate_every=4", "training.checkpoint_every=4",
    "flow.width=16", "flow.depth=1", "flow.heads=2", "training.threads=1",
]  # fmt: skip


def test_the_benchmark_measures_the_plane_and_keeps_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(surface, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(surface, "SCORING", {"brackets-8": {"calls": 8, "windows": 20, "fit": 64}})
    monkeypatch.setattr(surface, "ROUNDS", 1)
    monkeypatch.setattr(surface, "BATCH", 4)
    words = ["surface", "--on", "brackets-8", "--seeds", "0", "--heads", "--steps", "0", "1"]
    monkeypatch.setattr("sys.argv", [*words, "--runs", str(tmp_path / "runs"), "--set", *SMALL])
    monkeypatch.setattr("sys.argv", [*sys.argv, "--scores"])
    surface.main()
    assert len(list((tmp_path / "results").glob("*.json"))) == 3
    monkeypatch.setattr("sys.argv", sys.argv[:-1])
    capsys.readouterr()
    surface.main()
    told = capsys.readouterr().out
    cells: dict[str, list[dict]] = {}
    for file in (tmp_path / "results").glob("*.json"):  # scores and speeds
        cells.setdefault(file.name.split("-")[2], []).extend(json.loads(file.read_text())["results"])
    assert set(cells) == {"blocks", "whole", "autoregressive"} and len(list((tmp_path / "results").glob("*.json"))) == 6
    found = {
        (r["contract"].get("block"), r["contract"]["steps"]): r
        for r in cells["blocks"]
        if r["metric"] == "nll" and "state" not in r["contract"]
    }
    assert set(found) == {(b, k) for b in (1, 2, 4, 12) for k in (0, 1, None)}
    blocks = {1: 8, 2: 4, 4: 2, 12: 1}
    for (b, k), r in found.items():
        assert r["kind"] == "bound" and r["subject"] == "blocks"
        assert k is None or r["contract"]["nfe"] == (k + 1) * blocks[b]
    for r in cells["blocks"]:
        if r["metric"] == "tokens_per_second":  # what is timed is what is scored
            assert r["contract"]["nfe"] == found[r["contract"]["block"], r["contract"]["steps"]]["contract"]["nfe"]
    (zero,) = (r for r in cells["blocks"] if r["contract"].get("state") == "zero")
    assert zero["kind"] == "exact" and zero["contract"]["block"] == 1
    (exact,) = (r for r in cells["autoregressive"] if r["metric"] == "nll")
    (law,) = (r for r in cells["autoregressive"] if r["metric"] == "entropy")
    assert exact["kind"] == "exact" and law["value"] == pytest.approx(math.log(14) / 8)
    assert "| blocks, B = 12 |" in told and list((tmp_path / "results").glob("*.svg"))
    monkeypatch.setattr(surface, "train", None)  # what is kept is not trained again
    surface.main()
    assert capsys.readouterr().out == told
