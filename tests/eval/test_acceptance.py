"""Acceptance counted by hand, and measured on a run."""

import json
import math

import pytest
import torch

import leaplm
from eval.acceptance import accepted_length, conditional_acceptance


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "poker"
    settings = ["--training.steps", "3", "--training.batch-size", "16", "--training.threads", "1"]
    command = ["train", "poker-frequency", "--head.block-size", "3", "--run-dir", str(run), "--quiet", *settings]
    assert leaplm.main(command) == 0
    return str(run)


def test_both_definitions_on_a_case_made_by_hand():
    rows = [torch.tensor([3, 1, 4, 0]), torch.tensor([1, 1, 0, 0])]
    mean, error = accepted_length(rows)
    assert mean == pytest.approx(10 / 5)
    # the ratio's error: residuals 8 − 2·3 and 2 − 2·2
    assert error == pytest.approx(math.sqrt(4 + 4) / 5 * math.sqrt(2))
    # five passes, two reach position 2, both reach 3, one reaches 4
    going = [False] * len(rows)
    assert conditional_acceptance(rows, going, 4) == {2: pytest.approx(2 / 5), 3: 1.0, 4: pytest.approx(1 / 2)}
    assert conditional_acceptance([torch.tensor([1])], [False], 3) == {2: 0.0}  # no pass came to 3
    assert conditional_acceptance([torch.tensor([1, 2]), torch.tensor([1])], [True, True], 3) == {
        2: 0.5
    }  # ended by a token


def test_a_run_is_measured_by_rule_and_temperature(trained_run, tmp_path, capsys):
    file = tmp_path / "accept.json"
    command = ["accept", trained_run, "--verify", "token", "block", "--temperatures", "0", "1", "--num", "8"]
    assert leaplm.main([*command, "--new", "12", "--json", str(file)]) == 0
    records = json.loads(file.read_text())["results"]
    lengths = {
        (r["contract"]["verify"], r["contract"]["temperature"]): r["value"]
        for r in records
        if r["metric"] == "accepted_length"
    }
    assert set(lengths) == {("token", 0.0), ("token", 1.0), ("block", 0.0), ("block", 1.0)}
    assert all(1 <= value <= 3 for value in lengths.values()) and lengths["token", 0.0] == lengths["block", 0.0]
    assert "accepted length" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more, message", [(["--blocks", "9"], "at most 3"), (["--verify", "rule"], "rule"), (["--num", "0"], "--num")]
)
def test_wrong_input_is_one_line(trained_run, capsys, more, message):
    assert leaplm.main(["accept", trained_run, *more]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
