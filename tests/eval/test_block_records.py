import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.cells import cell
from eval.block_records import block_records, flops
from eval.likelihood import DRAWS, BlockLikelihood
from eval.loading import LoadedRun
from mtp import MTPForCausalLM

D, V, K = 16, 12, 3


@pytest.fixture
def run():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=V, hidden_size=D, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = MTPForCausalLM.from_trunk(AutoModelForCausalLM.from_config(config), "first-order-chain", K, rank=8)
    return LoadedRun("run", model, None, "first-order-chain", 3, 0.9, {})


def test_the_gap_closed_stands_beside_the_trunks_nll_and_the_heads_size(run):
    count = np.array([10.0, 30.0])
    made = BlockLikelihood(np.outer(count, [1, 3, 2]), np.outer(count, [1, 2, 2]), count)
    base = BlockLikelihood(np.outer(count, [1, 4, 4]), np.outer(count, [1, 2, 2]), count)
    records = {(r["metric"], r["subject"], r.get("positions")): r for r in block_records(run, made, "toy", base)}
    own = run.subject
    assert records["nll", own, "2-3"]["value"] == 2.5 and records["nll", "trunk", "2-3"]["value"] == 2.0
    assert records["block_nll", own, None]["value"] == 2.0
    assert records["gap_closed", own, "2-3"]["value"] == pytest.approx(0.75)
    assert records["parameters", own, None]["value"] == sum(p.numel() for p in run.model.head.parameters())
    assert records["flops", "trunk", None]["value"] > 0
    assert all(r["kind"] == "exact" and r["train_seed"] == 3 for r in records.values())


def test_what_is_a_mean_over_noise_is_called_a_bound(run):
    trunk = run.model.trunk
    model = MTPForCausalLM.from_trunk(trunk, "flow-map", K, state_size=4, num_layers=1).eval()
    loose = LoadedRun("run", model, None, "flow-map", 3, 0.9, {})
    count = np.array([10.0, 30.0])
    made = BlockLikelihood(np.outer(count, [1, 3, 2]), np.outer(count, [1, 2, 2]), count)
    base = BlockLikelihood(np.outer(count, [1, 4, 4]), np.outer(count, [1, 2, 2]), count)
    records = {(r["metric"], r["subject"], r.get("positions")): r for r in block_records(loose, made, "toy", base)}
    assert {r["kind"] for (_, subject, _), r in records.items() if subject == "trunk"} == {"exact"}
    assert records["block_nll", "flow-map", None]["kind"] == records["gap_closed", "flow-map", "2-3"]["kind"] == "bound"
    assert (
        records["nll", "flow-map", "2-3"]["kind"] == "bound" and records["nll", "flow-map", "3"]["kind"] == "estimate"
    )
    assert records["block_nll", "flow-map", None]["draws"] == DRAWS


def test_flops_of_a_draw_grow_with_its_steps(run):
    model = MTPForCausalLM.from_trunk(run.model.trunk, "flow-map", K, state_size=4, num_layers=1).eval()
    loose = LoadedRun("run", model, None, "flow-map", 3, 0.9, {})
    calls = []
    for steps in (1, 2, 3):
        model.head.steps = steps
        calls.append(flops(loose)[0])
    assert calls[2] - calls[1] == calls[1] - calls[0] > 0


def test_flops_of_a_head_are_its_matrix_products(run):
    width = 2 * D
    projection = 2 * (K - 1) * 2 * D * width  # up and down
    readout = 2 * (K - 1) * V * (D + 8)
    assert flops(run)[0] == projection + readout


def test_a_cell_is_measured_once_and_again_when_its_inputs_change(tmp_path):
    calls = []

    def measure():
        calls.append(1)
        return [{"metric": "nll", "value": len(calls)}]

    file = tmp_path / "a" / "cell.json"
    for inputs, expected in (({"x": 1}, 1), ({"x": 1}, 1), ({"x": 2}, 2)):
        assert cell(file, inputs, ["c"], measure)[0]["value"] == expected
    assert json.loads(file.read_text())["schema"] == "leaplm/1"


def test_a_committed_cell_names_no_folder_of_the_machine_it_was_measured_on(tmp_path):
    file, place = tmp_path / "cell.json", str(tmp_path / "heads")
    cell(file, {}, ["c", "--runs", place], lambda: [{"run": f"{place}/poker-0", "value": 1}, {"value": 2}])
    assert str(tmp_path) not in file.read_text()
    assert [r.get("run") for r in json.loads(file.read_text())["results"]] == ["poker-0", None]
