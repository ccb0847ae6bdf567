"""The benchmark times nothing before both models gave the same answers."""

import json

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'leaplm[eval]'")

from benchmarks import harness
from tests.eval.harness_models import TEXTS, bpe_model, request


@pytest.fixture
def asked(monkeypatch):
    tasks = {
        "local_lambada_openai": [request("To be, or not", " to be", at=i) for i in range(3)],
        "local_wikitext2": [request(text, kind="loglikelihood_rolling") for text in TEXTS],
        "local_gsm8k": [request("To be", {"until": ["."], "max_gen_toks": 4}, kind="generate_until")],
    }
    monkeypatch.setattr(harness, "requests_of", lambda task: tasks.get(task, []))
    monkeypatch.setattr(harness, "quiet_libraries", lambda: None)
    monkeypatch.setattr(harness.logging, "disable", lambda level: None)


def test_every_kind_of_request_is_answered_alike_and_timed(asked, tmp_path, monkeypatch, capsys):
    model, file = bpe_model(tmp_path / "model"), tmp_path / "speed.json"
    monkeypatch.setattr("sys.argv", ["harness", model, "--rounds", "2", "--batch-size", "2", "--json", str(file)])
    harness.main()
    records = json.loads(file.read_text())["results"]
    assert [r["on"] for r in records] == ["local_lambada_openai", "local_wikitext2", "local_gsm8k"]
    assert all(r["metric"] == "speedup" and r["value"] > 0 and len(r["interval"]) == 2 for r in records)
    assert "local_hellaswag: its data is not here" in capsys.readouterr().out


def test_models_that_answer_differently_are_not_timed(asked, tmp_path, monkeypatch):
    answer = harness.LeapMTP.loglikelihood
    wrong = lambda self, *args, **how: [(value + 0.5, greedy) for value, greedy in answer(self, *args, **how)]  # noqa: E731
    monkeypatch.setattr(harness.LeapMTP, "loglikelihood", wrong)
    with pytest.raises(ValueError, match="3 of 3 answers differ"):
        harness.measure("run", bpe_model(tmp_path / "model"), "local_lambada_openai", 2, 1)
