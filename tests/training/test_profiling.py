"""`--profile` leaves a trace of five steps beside the run."""

import json

import leaplm
from training.profiling import ACTIVE, WAIT, WARM


def test_a_trace_is_left_and_the_run_is_as_it_was(tmp_path, capsys):
    command = ["train", "poker", "--training.steps", "9", "--training.threads", "1", "--quiet", "--run-dir"]
    assert leaplm.main([*command, str(tmp_path / "plain")]) == 0
    assert leaplm.main([*command, str(tmp_path / "traced"), "--profile"]) == 0
    operations = (tmp_path / "traced" / "profile" / "operations.txt").read_text()
    assert operations.startswith(f"{ACTIVE} steps") and "aten::" in operations
    steps = [e for e in json.loads((tmp_path / "traced/profile/trace.json").read_text())["traceEvents"]
             if str(e.get("name", "")).startswith("ProfilerStep#")]  # fmt: skip
    assert {e["name"] for e in steps} == {f"ProfilerStep#{n}" for n in range(WAIT + WARM, WAIT + WARM + ACTIVE)}
    losses = [
        json.loads(line)["loss"]
        for run in ("plain", "traced")
        for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()
    ]
    assert losses[: len(losses) // 2] == losses[len(losses) // 2 :]


def test_too_few_steps_to_trace_is_one_line(tmp_path, capsys):
    command = ["train", "poker", "--training.steps", "3", "--training.threads", "1", "--quiet", "--profile"]
    assert leaplm.main([*command, "--run-dir", str(tmp_path / "run")]) == 2
    assert "traces 5 steps after 3" in capsys.readouterr().err
