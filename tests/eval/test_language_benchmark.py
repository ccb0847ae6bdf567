"""Language benchmarks by network calls: cells are kept, what knows no calls is scored once, slopes stand beside."""

import gzip
import json
import os
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="the extra eval is not here")

from benchmarks import flow_runs, flow_text, language
from training.config import load_preset, override

SMALL = {"training__steps": 4, "training__batch_size": 4, "training__evaluate_every": 4}


@pytest.fixture
def small(tmp_path, monkeypatch):
    data = Path(os.environ.get("LEAPLM_DATA", "nowhere"))
    if not (data / "lambada").is_dir():
        pytest.skip("LAMBADA is not under LEAPLM_DATA")
    (tmp_path / "wikitext2").mkdir()
    (tmp_path / "lambada").symlink_to((data / "lambada").resolve())
    for split in ("train", "valid", "test"):
        with gzip.open(tmp_path / "wikitext2" / f"{split}.txt.gz", "wt") as file:
            file.write(" = Dogs = \n the quick brown fox jumps over the lazy dog and the dog sleeps on\n" * 80)
    monkeypatch.setenv("LEAPLM_DATA", str(tmp_path))
    monkeypatch.setattr(
        flow_runs, "load_preset", lambda name: override(load_preset(name), **SMALL, flow__width=16, flow__depth=1, flow__heads=2)
    )  # fmt: skip
    monkeypatch.setattr(language, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(language, "SUITES", tmp_path / "suites")
    monkeypatch.setattr(language, "CALLS", (1, 2))
    monkeypatch.setattr(flow_text, "BUDGET", {"characters": 16})
    return tmp_path


def measured(small, monkeypatch, capsys, looks_at, *presets):
    """What is printed, and the records of each preset."""
    task = "local_lambada_openai"
    monkeypatch.setattr(language, "TASKS", {task: looks_at})
    words = ["language", "--seeds", "0", "--limit", "2", "--runs", str(small / "runs")]
    monkeypatch.setattr("sys.argv", [*words, "--presets", *presets])
    language.main()
    told = capsys.readouterr().out
    files = [small / "results" / f"characters-{task}-{name}-0.json" for name in presets]
    return told, *(json.loads(file.read_text())["results"] for file in files)


def calls(records):
    return [r["contract"]["nfe"] for r in records if r["metric"] == "harness_score"]


def test_what_is_refined_has_a_score_for_every_number_of_calls_and_a_slope(small, monkeypatch, capsys):
    told, causal, flow = measured(small, monkeypatch, capsys, "bound", "flow-ar", "flow-flm")
    assert calls(flow) == [1, 2] and calls(causal) == [None]
    assert [r["metric"] for r in flow].count("slope") == 1 and flow[-1]["contract"]["calls"] == [1, 2]
    assert {r["kind"] for r in flow} == {"bound"} and {r["kind"] for r in causal} == {"exact"}
    assert "(whatever the calls)" in told and "flow-flm, k-step | 0" in told
    monkeypatch.setattr(flow_runs, "train", None)  # what is kept is not measured again
    language.main()
    assert told.endswith(capsys.readouterr().out.split("| on |")[1])


def test_what_is_written_takes_as_many_calls_as_it_is_asked(small, monkeypatch, capsys):
    _, masked = measured(small, monkeypatch, capsys, "written", "flow-mdlm")
    assert calls(masked) == [1, 2] and {r["kind"] for r in masked} == {"estimate"}
    assert {r["contract"].get("sampler") for r in masked} == {"ancestral"} and all(r["n"] == 2 for r in masked)


def test_a_model_of_blocks_is_asked_at_one_length(small, monkeypatch, capsys):
    told, blocks = measured(small, monkeypatch, capsys, "bound", "flow-block-flow")
    assert {r["contract"]["block"] for r in blocks} == {language.BLOCK} and calls(blocks) == [1, 2]
    assert "flow-block-flow, blocks of 16, k-step" in told
