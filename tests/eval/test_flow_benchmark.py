"""The benchmark of flow language models: cells are kept, what a preset begins with is trained before it."""

import json

import torch

from benchmarks import flow, flow_runs
from benchmarks.exact_posterior import ExactPosterior
from eval.flow import load_flow
from eval.validity.suites import load_suite
from flowlm.token_map import Known
from training.data.cases import encode_suite

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


def test_the_exact_posterior_writes_valid_answers_in_steps_enough_and_is_what_a_loop_over_answers_finds(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(flow, "RESULTS", tmp_path / "results")
    words = ["flow", "--on", "poker", "--presets", "flow-poker-denoiser", "--seeds", "0", "--num", "200", "--exact"]
    monkeypatch.setattr("sys.argv", [*words, "--runs", str(tmp_path / "runs"), "--all", *SMALL])
    flow.main()
    (cell,) = (tmp_path / "results").glob("*-exact.json")
    found = json.loads(cell.read_text())["results"]
    assert {r["subject"].split(", ")[-1] for r in found} == {"exact posterior"}
    valid = {r["contract"]["nfe"]: r["value"] for r in found if r["metric"] == "validity"}
    assert valid[16] > 0.999 and valid[1] < 0.4  # untrained though the network is

    (folder,) = (tmp_path / "runs" / "poker").iterdir()
    run, suite = load_flow(str(folder)), load_suite("poker")
    map, encoded = run.model.map, encode_suite(suite, run.tokenizer)
    ((prompt, law),) = encoded.answers.items()
    start, t = encoded.starts[prompt], torch.tensor([0.8])
    answers = {text: torch.tensor([*start, *tokens]) for text, tokens in law.items()}
    window = next(iter(answers.values()))
    known = Known(window[None], (torch.arange(len(window)) < len(start))[None])
    x = torch.randn(1, len(window), map.codebook.state_size, generator=torch.Generator().manual_seed(0))
    alpha, sigma = (float(part) for part in (map.path.alpha(t), map.path.sigma(t) * map.path.noise_scale))
    weights = {}
    for text, tokens in answers.items():
        away = (x[0] - alpha * map.codebook.encode(tokens).detach())[len(start) :].double()
        weights[text] = suite.laws[prompt][text] * float((-away.square().sum() / (2 * sigma**2)).exp())
    logits = ExactPosterior(run, suite)(x, t, t, known)[0]
    for place, token in ((len(start), window[-1]), (len(window) - 1, window[-1])):
        held = sum(w for text, w in weights.items() if answers[text][place] == token)
        assert abs(float(logits[place].softmax(-1)[token]) - held / sum(weights.values())) < 1e-5
