"""The benchmark of flow language models: cells are kept, what a preset begins with is trained before it."""

import json

from benchmarks import flow, flow_runs

SMALL = ["training.steps=4", "flow.width=16", "training.batch_size=16", "training.evaluate_every=4"]


def test_a_map_is_distilled_from_the_denoiser_that_is_trained_before_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(flow, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(flow, "PLAN", {"poker": ("flow-poker-map", "flow-poker-mdlm")})
    words = ["flow", "--on", "poker", "--seeds", "0", "--num", "600"]
    monkeypatch.setattr("sys.argv", [*words, "--runs", str(tmp_path / "runs"), "--all", *SMALL])
    flow.main()
    told = capsys.readouterr().out
    runs = {folder.name.split("-steps")[0] for folder in (tmp_path / "runs" / "poker").iterdir()}
    assert runs == {"flow-poker-denoiser-0", "flow-poker-map-0", "flow-poker-mdlm-0"}
    (cell,) = (tmp_path / "results").glob("poker-flow-poker-map-0-*.json")
    found = json.loads(cell.read_text())["results"]
    assert {
        (r["metric"], r["contract"]["sampler"], r["contract"]["nfe"], r["contract"]["temperature"]) for r in found
    } == {
        (metric, sampler, nfe, 1.0)
        for metric in ("validity", "total_variation")
        for sampler in ("pushforward", "euler")
        for nfe in flow.CALLS
    }
    assert all(r["details"]["training_cpu_seconds"] > 0 for r in found)
    assert "| poker | flow-poker-mdlm" in told and "| even |" in told and list((tmp_path / "results").glob("*.svg"))
    monkeypatch.setattr(flow_runs, "train", None)  # what is kept is not trained again
    flow.main()
    assert capsys.readouterr().out == told


def test_another_temperature_is_a_cell_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(flow, "RESULTS", tmp_path / "results")
    words = ["flow", "--on", "poker", "--presets", "flow-poker-mdlm", "--seeds", "0", "--num", "60"]
    for more in ([], ["--temperature", "0"]):
        monkeypatch.setattr("sys.argv", [*words, *more, "--runs", str(tmp_path / "runs"), "--all", *SMALL])
        flow.main()
    assert not list((tmp_path / "results").glob("*.svg"))  # a picture is of the whole plan
    files = sorted((tmp_path / "results").glob("*.json"))
    told = [{r["contract"]["temperature"] for r in json.loads(file.read_text())["results"]} for file in files]
    assert len(files) == 2 and sorted(map(tuple, told)) == [(0.0,), (1.0,)]
