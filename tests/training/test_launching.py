"""The files of configs/accelerate: read by accelerate itself, and run where CPUs will do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from tests.training.harness import ROOT

FOLDER = ROOT / "configs" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))
QUICK = ["--training.steps", "2", "--training.batch-size", "16", "--training.threads", "1", "--quiet"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_reads_the_file_as_it_is_written(file):
    held = load_config_from_file(str(file))
    assert isinstance(held, ClusterConfig)
    for key, value in yaml.safe_load(file.read_text()).items():
        read = getattr(held, key)
        assert getattr(read, "value", read) == value, key
    words = [
        "--config_file",
        str(file),
        "--machine_rank",
        "0",
        "--main_process_ip",
        "localhost",
        "-m",
        "leaplm",
        "train",
    ]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert args.use_fsdp == (file.stem == "fsdp2") and args.num_processes == held.num_processes


def test_what_was_not_run_on_gpus_says_so():
    for file in [*FILES, FOLDER / "slurm.sh"]:
        assert file.stem == "cpu" or "configured, not run" in file.read_text().lower(), file.name


def test_slurms_lines_start_the_processes_of_a_node(tmp_path):
    """With srun and scontrol in the place of a cluster's."""
    for name, line in {"srun": 'exec "$@"', "scontrol": "echo localhost"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        "SLURM_JOB_NODELIST": "node", "SLURM_NNODES": "1", "SLURM_JOB_ID": "1", "PROCESSES": "2", "PORT": "0",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = ["bash", str(FOLDER / "slurm.sh"), "poker", "--run-dir", str(tmp_path / "run"), *QUICK]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["processes"] == 2
