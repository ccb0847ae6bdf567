"""Every estimator on one trained model, as a cell that is kept."""

import json
import sys

from benchmarks import likelihoods
from eval.flow import load_flow
from tests.eval.test_flow_text_benchmark import small  # noqa: F401  # a fixture


def test_a_cell_says_of_every_estimator_what_it_is_and_what_it_took(small, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(likelihoods, "RESULTS", small / "results")
    monkeypatch.setattr(
        likelihoods, "SIZES", {name: {"windows": 2, "calls": 12, "fit": 4} for name in likelihoods.SIZES}
    )
    for name, value in (("FIT", 4), ("STEPS", (1, 2)), ("FEW", (1,)), ("ALONG", 1)):
        monkeypatch.setattr(likelihoods, name, value)
    monkeypatch.setattr(sys.modules["flowlm.likelihood.importance"], "INFLATIONS", (0.5, 1.0))
    monkeypatch.setattr(sys.modules["flowlm.likelihood.importance"], "INVERSION", 1)
    words = ["likelihoods", "--seeds", "0", "--runs", str(small / "runs")]
    monkeypatch.setattr("sys.argv", [*words, "--presets", "flow-flm", "flow-block-flow", "flow-mdlm"])
    likelihoods.main()
    told = capsys.readouterr().out
    denoiser = json.loads((small / "results" / "characters-flow-flm-0.json").read_text())["results"]
    kinds = {(r["contract"]["estimator"], r["kind"]) for r in denoiser if r["metric"] == "nll"}
    assert kinds == {("vlb", "bound"), ("k-step", "bound"), ("ode", "estimate")}
    assert {r["contract"]["times"]: r["value"] > 0 for r in denoiser if r["metric"] == "variance"} == {
        "fitted": True,
        "uniform": True,
        likelihoods.ALONE: True,
    }
    blocks = json.loads((small / "results" / "characters-flow-block-flow-0.json").read_text())["results"]
    drawn = [r for r in blocks if r["contract"]["estimator"] == "sampler"]
    assert {r["contract"]["block"] for r in drawn} == {1, 4, 16} and all("bound_at_64" in r["details"] for r in drawn)
    assert all(r["cpu_seconds"] > 0 and r["windows"] == 2 for r in (*denoiser, *blocks) if r["metric"] == "nll")
    assert "nelbo" in told and "the bound's variance of a network call" in told and "effective sample size" in told
    monkeypatch.setattr(likelihoods, "measure_flow", None)  # what is kept is not measured again
    likelihoods.main()
    assert told.endswith(capsys.readouterr().out)


def test_uniform_times_end_where_the_fitted_ones_do(small):  # noqa: F811
    from benchmarks import flow_runs

    run = load_flow(str(flow_runs.Planned("flow-flm", small / "runs" / "small", 0, flow_runs.as_it_is, {}).train()[0]))
    fitted = likelihoods.Clock.even(1e-3, 40.0, 64)
    even = likelihoods.uniform_in_time(run, fitted)
    assert even.end == fitted.end and even.edges[0] == 0 and even.chance.sum().item() - 1 < 1e-9
    times = likelihoods.time_of(run.model.map.path, even.edges[1:-1])
    assert times.diff().abs().max() < 3 * times.diff().abs().median()
