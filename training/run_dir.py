"""A run's folder: what was asked, how it went, where it stands.

    config.yaml  command.txt  provenance.json  diff.patch  metrics.jsonl  checkpoints/step-N/  profile/  .lock

A checkpoint is written beside its place and renamed, so a run killed at any moment finds only whole
ones. `state.pt` is what the loop needs to go on; `model/` is what `from_pretrained` loads.
"""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from training.config import RunConfig, difference, read_yaml, to_dict, validate
from training.provenance import git_diff, provenance, write_json

LOCK = ".lock"
OURS = {
    LOCK,
    "checkpoints",
    "command.txt",
    "diff.patch",
    "config.yaml",
    "provenance.json",
    "metrics.jsonl",
    "profile",
    "trackers",
}
"""What an attempt that left no checkpoint may have written."""


class RunDir:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """No other process trains this run meanwhile: both would write the same checkpoints. Let go of when the process dies; a folder
        in which no run was begun is left as it was."""
        new = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"{self.path} is being trained by another process: wait for it, or name another folder with --run-dir"
            ) from None
        except (NotImplementedError, OSError):  # a file system without locks
            pass
        try:
            yield
        finally:
            begun = (self.path / "config.yaml").exists()
            if not begun:
                (self.path / LOCK).unlink(missing_ok=True)
            lock.release()
            if not begun:
                with contextlib.suppress(OSError):
                    if new:
                        self.path.rmdir()

    def open(self, config: RunConfig) -> None:
        """Create the folder, or check that it holds a run of this very configuration."""
        file = self.path / "config.yaml"
        wanted = yaml.safe_load(yaml.safe_dump(to_dict(config)))  # through YAML, as the file has been
        if self.steps():
            held = to_dict(
                validate(read_yaml(file), str(file))
            )  # fields that are newer than the run have their defaults
            if differing := difference(yaml.safe_load(yaml.safe_dump(held)), wanted):
                names = ", ".join(differing[:3])
                raise ValueError(
                    f"{self.path} holds a run with another {names}: name another folder with --run-dir, or remove it"
                )
        else:
            found = {p.name.split(".partial")[0] for p in self.path.iterdir()} if self.path.exists() else set()
            if found - OURS:
                raise ValueError(f"{self.path} is not empty and holds no run: name another folder with --run-dir")
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            (self.path / "command.txt").write_text(" ".join(sys.argv) + "\n")
            if diff := git_diff():
                (self.path / "diff.patch").write_text(diff)
            partial = file.with_name(f"config.yaml.partial-{os.getpid()}")
            partial.write_text(yaml.safe_dump(wanted, sort_keys=False))
            partial.replace(file)
        for partial in self.checkpoints.glob("*.partial"):
            shutil.rmtree(partial)

    def provenance(self) -> dict[str, Any]:
        """What a run that has a checkpoint was started with; nothing of an attempt that left none."""
        file = self.path / "provenance.json"
        return json.loads(file.read_text()) if file.exists() and self.steps() else {}

    def record(self, **facts: Any) -> None:
        """What was true at the start stays; inputs that have changed since are refused."""
        known = self.provenance()
        inputs = {"fingerprint": "data", "trunk_sha256": "trunk", "objective_version": "version of its objective"}
        for name, what in inputs.items():
            if known.get(name) != facts.get(name) and name in known:
                raise ValueError(
                    f"{self.path} was started on another {what}, which has changed since: name another folder with --run-dir"
                )
        write_json(self.path / "provenance.json", {**provenance(), **facts, **known})

    def steps(self) -> list[int]:
        """Steps with a whole checkpoint, ascending."""
        found = (p.name.removeprefix("step-") for p in self.checkpoints.glob("step-*"))
        return sorted(int(name) for name in found if name.isdigit())

    def save(self, step: int, state: dict[str, Any], save_model, keep: int) -> None:
        """save_model(folder) writes what from_pretrained loads."""
        partial = self.checkpoints / f"step-{step}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        torch.save(state, partial / "state.pt")
        save_model(partial / "model")
        target = self.checkpoints / f"step-{step}"
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        for old in self.steps()[:-keep]:
            shutil.rmtree(self.checkpoints / f"step-{old}")

    def load(self) -> dict[str, Any] | None:
        """The newest state, tensors and plain values only."""
        steps = self.steps()
        if not steps:
            return None
        file = self.checkpoints / f"step-{steps[-1]}" / "state.pt"
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a broken file fails in as many ways as there are formats
            raise ValueError(
                f"{file} did not load: remove its folder, and the run goes on from the one before"
            ) from error

    def log(self, record: dict[str, Any]) -> None:
        with open(self.metrics, "a") as file:
            file.write(json.dumps(record) + "\n")

    def cpu_seconds(self) -> float:
        """Of the first process, in training and evaluation, as far as the metrics go; 0 of a run from before they were kept."""
        lines = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        return max((json.loads(line).get("cpu_seconds", 0.0) for line in lines), default=0.0)

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps that will be run again, and a half-written last line."""
        if self.metrics.exists():
            lines = self.metrics.read_text().split("\n")
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
            if [*kept, ""] == lines:  # of a finished run, which others may read meanwhile
                return
            partial = self.metrics.with_name("metrics.jsonl.partial")
            partial.write_text("".join(line + "\n" for line in kept))
            partial.replace(self.metrics)


def model_folder(run: str | Path) -> Path:
    """RUN (a run directory, a checkpoint, or a model folder) → the folder from_pretrained loads."""
    path = Path(run)
    if (path / "checkpoints").is_dir():
        steps = RunDir(path).steps()
        if not steps:
            raise ValueError(f"run {path} has no checkpoint yet: run its training command again to finish it")
        path = path / "checkpoints" / f"step-{steps[-1]}"
    if (path / "model" / "config.json").is_file():
        return path / "model"
    if (path / "config.json").is_file():
        return path
    raise ValueError(f"{run} is no run directory, checkpoint or model folder")
