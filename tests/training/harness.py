"""Runs of the training loop for tests: short ones, launched ones, and what they left."""

import json
import os
import subprocess
import sys
from pathlib import Path

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
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
