"""Runs of the training loop for tests: short ones, launched ones, and what they left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from training.run_dir import RunDir

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "training__threads": 1,
    "training__precision": "float32",
    "training__log_every": 2,
    "training__evaluate_batches": 2,
}


def state(run):
    return RunDir(run).load()


def assert_equal(a, b, tolerance=0.0):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.allclose(a[key], b[key], atol=tolerance, rtol=0), key


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], r["split"], r["loss"]) for r in lines]


def write_preset(path, settings, extends="stdlib-trunk"):
    nested = {"extends": extends}
    for key, value in settings.items():
        section, _, name = key.partition("__")
        nested.setdefault(section, {})[name] = value
    path.write_text(json.dumps(nested))
    return str(path)


def launch(arguments, processes=1, **options):
    command = [sys.executable, "-m", "leaplm", "train", *arguments, "--quiet"]
    if processes > 1:
        command[1:2] = [
            "-m",
            "torch.distributed.run",
            f"--nproc_per_node={processes}",
            "--master_port=0",
            "--standalone",
            "-m",
        ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def stopped(run, step=6):
    """Runs run() until the optimizer's step-th step begins."""
    real, calls = torch.optim.AdamW.step, []

    def count(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == step:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", count)
        with pytest.raises(KeyboardInterrupt):
            run()


def killed_and_started_again(preset, run, least=7, most=60):
    """A process killed between two checkpoints, at a moment nobody chose, and another that goes on to the end."""
    arguments, folder, deadline = [preset, "--run-dir", str(run)], RunDir(run), time.monotonic() + 120
    process = launch(arguments)
    while (not folder.steps() or folder.steps()[-1] < least) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and least <= folder.steps()[-1] < most
    process = launch(arguments)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
