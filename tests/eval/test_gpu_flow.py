"""The flow language models' script at a tiny size: what it writes, for every kind of preset, and what it may import."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.gpu import flow
from training.config import load_preset, to_dict


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A text of five characters that says the next of most, and the presets."""
    text = (np.arange(6000) * np.arange(6000) % 5).astype(np.uint16)
    plans = {n: to_dict(load_preset(n)) for n in flow.PRESETS}
    file = tmp_path_factory.mktemp("text") / "toy.npz"
    np.savez(
        file, name="toy", vocab=5, train=text, train_offsets=np.array([0, 900, 6000]), validation=text[:900],
        validation_offsets=np.array([0, 200, 900]),
        presets=json.dumps({n: flow.plan_of(p) | {"block_lengths": p["flow"]["block_lengths"] and [4, 16]} for n, p in plans.items()}),
    )  # fmt: skip
    return file


@pytest.mark.parametrize("preset", flow.PRESETS)
def test_every_preset_is_trained_scored_and_judged(preset, data, tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    small = "--steps 5 --width 16 --depth 1 --length 16 --batch 8 --windows 6 --num 4 --minutes 60"
    monkeypatch.setattr(flow, "FITTED", 24)
    monkeypatch.setattr(
        sys, "argv", ["flow", "--data", str(data), "--out", str(out), "--presets", preset, *small.split()]
    )
    flow.main()
    found = json.loads(out.read_text())
    assert found["schema"] == "leaplm/1"
    own = [r for r in found["results"] if r["subject"] == preset]
    bounds = [r for r in own if r["metric"] == "nll"]
    kind = "exact" if preset == "flow-ar" else "bound"
    blocks = [4, 16] if preset in ("flow-bd3lm", "flow-block-flow") else [None]
    assert [r["contract"]["block"] for r in bounds] == blocks and {r["kind"] for r in bounds} == {kind}
    assert all(0 < r["value"] < 4 for r in bounds)
    judged = [r for r in own if r["metric"] == "judge_nll"]
    assert judged and all(0 < r["value"] < 3 for r in judged)
    grids = {
        "flow-flm": {("ddim", "closing"), ("ddpm", "closing")},
        "flow-leap": {("pushforward", "closing"), ("restart", "closing"), ("euler", "closing")},
    }
    if preset in grids:
        assert {(r["contract"]["sampler"], r["contract"]["grid"]) for r in judged} == grids[preset]
    if kind == "bound" and preset not in ("flow-bd3lm", "flow-block-flow"):
        assert max(r["contract"]["nfe"] for r in judged) == 16
    assert [r["metric"] for r in found["results"] if r["subject"] == "data"] == ["judge_nll", "entropy", "distinct_n"]


def test_the_scripts_need_no_more_than_they_say():
    told = "import sys, benchmarks.gpu.flow, benchmarks.gpu.images; print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded and not {"datasets", "pydantic", "tyro", "matplotlib"} & set(loaded)


def test_stages_share_the_minutes_as_they_share_the_windows(data, tmp_path):
    bench = flow.Bench(SimpleNamespace(data=data, out=tmp_path / "out.json", depth=1, width=16))
    shares = {name: bench.own_share(name) for name in ("flow-dfm-esd", "flow-fmlm", "flow-leap")}
    assert shares == {"flow-dfm-esd": pytest.approx(0.15), "flow-fmlm": 0.5, "flow-leap": 1.0}
