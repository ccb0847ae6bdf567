"""Passes of the network are counted as they are made, and each preset is timed against the autoregressive model."""

import json

import torch

from benchmarks import flow_costs
from flowmap.backbone import Backbone, BackboneConfig
from flowmap.objectives.base import derivative
from tests.eval.test_flow_text_benchmark import small  # noqa: F401  a fixture


def test_passes_are_counted_by_gradients_and_derivatives():
    network = Backbone(BackboneConfig(state_size=3, width=8, depth=1, heads=2, max_positions=4))
    x, t = torch.randn(5, 4, 3), torch.rand(5)
    with flow_costs.counted() as held:
        network(x, t, t)
        with torch.no_grad():
            network(x[:2], t[:2], t[:2])
        assert held == {True: 20, False: 8}
        derivative(lambda x, t, s, _: network(x, t, s), (x, t, t), (None, 0.0, 1.0))
    assert held == {True: 60, False: 8}
    network(x, t, t)
    assert held[True] == 60  # nothing is counted behind it


def test_what_each_preset_passes_through_its_network(small, tmp_path, monkeypatch):  # noqa: F811
    file = tmp_path / "costs.json"
    presets = ["flow-mdlm", "flow-flm", "flow-cfm", "flow-fmlm"]
    tiny = ["training.batch_size=8", "flow.width=16", "flow.depth=1", "flow.heads=2"]
    words = ["--presets", *presets, "--set", *tiny, "--rounds", "2", "--json", str(file)]
    monkeypatch.setattr("sys.argv", ["flow_costs", *words])
    flow_costs.main()
    records = [r for r in json.loads(file.read_text())["results"] if r["metric"] == "latency"]
    passes = {r["subject"]: (r["details"]["with_gradient"], r["details"]["without"]) for r in records}
    assert passes["flow-ar"] == passes["flow-mdlm"] == passes["flow-flm"] == (1, 0)
    assert passes["flow-cfm"] == (1.25, 0.25)  # the jumps' quarter has a derivative along, and one that is landed on
    assert "flow-fmlm" not in passes  # it learns from a run
    assert all(r["value"] > 0 for r in records)
