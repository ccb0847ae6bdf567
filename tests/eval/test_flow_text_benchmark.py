"""The benchmark of flow language models of text: bounds and judged samples in one cell, kept."""

import gzip
import json
from types import SimpleNamespace

import pytest

from benchmarks import flow_runs, flow_text
from eval.flow import load_flow
from eval.flow_samples import starts_of
from training.config import load_preset, override

SMALL = {"training__steps": 4, "training__batch_size": 4, "training__evaluate_every": 4}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A WikiText-2 of one sentence, every preset at the size of a second."""
    (tmp_path / "wikitext2").mkdir()
    for split in ("train", "valid", "test"):
        with gzip.open(tmp_path / "wikitext2" / f"{split}.txt.gz", "wt") as file:
            file.write(" = Dogs = \n the quick brown fox jumps over the lazy dog and the dog sleeps on\n" * 80)
    monkeypatch.setenv("LEAPLM_DATA", str(tmp_path))
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}

    def shrunk(name):
        config = load_preset(name)
        if config.flow is None:
            return override(config, **SMALL, trunk__config={**config.trunk.config, **tiny})
        return override(config, **SMALL, flow__width=16, flow__depth=1, flow__heads=2)

    for module in (flow_text, flow_runs):
        monkeypatch.setattr(module, "load_preset", shrunk)
    monkeypatch.setattr(flow_text, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(flow_text, "NUM", 4)
    monkeypatch.setattr(flow_text, "BOUND", SimpleNamespace(**{**vars(flow_text.BOUND), "windows": 4, "fit": 4}))
    return tmp_path


def test_a_cell_has_a_bound_and_judged_samples_of_every_number_of_calls(small, monkeypatch, capsys):
    words = ["flow_text", "--seeds", "0", "--runs", str(small / "runs")]
    monkeypatch.setattr("sys.argv", [*words, "--presets", "flow-ar", "flow-fmlm", "flow-mdlm"])
    flow_text.main()
    told = capsys.readouterr().out
    runs = {folder.name for folder in (small / "runs" / "characters").iterdir() if folder.is_dir()}
    assert runs == {"judge", "flow-ar-0", "flow-flm-0", "flow-fmlm-0", "flow-mdlm-0"}
    found = json.loads((small / "results" / "characters-flow-fmlm-0.json").read_text())["results"]
    assert {(r["subject"], r["kind"]) for r in found if r["metric"] == "nll"} == {("flow-fmlm", "bound")}
    judged = [r for r in found if r["metric"] == "judge_nll" and r["subject"] != "data"]
    assert {(r["contract"]["sampler"], r["contract"]["nfe"], r["contract"]["temperature"]) for r in judged} == {
        (sampler, nfe, temperature)
        for sampler in ("pushforward", "euler")
        for nfe in flow_text.CALLS
        for temperature in flow_text.TEMPERATURES
    }
    (real,) = [r for r in found if r["metric"] == "judge_nll" and r["subject"] == "data"]
    assert real["n"] == 4 and real["value"] > 0
    assert "exact, exact" in told and "nelbo, bound" in told and "(nfe 128)" in told
    monkeypatch.setattr(flow_runs, "train", None)  # what is kept is not trained again
    monkeypatch.setattr(flow_text, "train", None)
    flow_text.main()
    assert told.endswith(capsys.readouterr().out)


def test_a_window_of_text_begins_anywhere_and_a_suite_s_with_the_start_token(small):
    run = load_flow(str(_trained(small, "flow-mdlm")))
    assert starts_of(run, [("", ""), ("ab", "")]) == [[], run.tokenizer.encode("ab", add_special_tokens=False)]
    suite = load_flow(str(_trained(small, "flow-poker-mdlm")))
    assert starts_of(suite, [("", "")]) == [[suite.tokenizer.bos_token_id]]


def _trained(folder, preset):
    return flow_runs.Planned(preset, folder / "runs" / "small", 0, {}, {}).train()[0]
