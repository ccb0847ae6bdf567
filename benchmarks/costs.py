"""CPU time of a training step: what arms are given alike when they are compared at equal training time."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from eval.records import record, write_records
from flowmap.rng import Rng
from training.config import RunConfig
from training.optimizers import make_optimizers
from training.provenance import write_json
from training.slices import SliceLoss
from training.task import Task

Build = Callable[[RunConfig, Accelerator], Task]
BESIDE = "flow-matching"
"""Whose cost is the unit of those measured later."""
TIMED_STEP = 1000
"""The step of training that is timed: what is paced should be half through by then."""


def measure_costs(
    configs: Mapping[str, RunConfig], build: Build, on: str, file: Path, command: list[str], later: bool = False
) -> None:
    """Median CPU time of a step of each, kept as `keep_costs` says."""
    keep_costs(cpu_seconds(configs, build, on), on, file, command, later)


def keep_costs(
    seconds: Mapping[str, list[float]], on: str, file: Path, command: list[str], later: bool = False
) -> None:
    """seconds: of a step of each, by round. later: BESIDE was measured again with what was not there at first, which is added in the
    file's own seconds of that; what the file says of the others stands, and who measured it."""
    if not later:
        return write_records(file, command, _medians(seconds, on))
    kept = json.loads(file.read_text())
    scale = seconds_of_a_step(file, "")[BESIDE] / float(np.median(seconds[BESIDE]))
    fresh = _medians({name: [scale * one for one in times] for name, times in seconds.items() if name != BESIDE}, on)
    others = [r for r in kept["results"] if r["subject"] not in {r["subject"] for r in fresh}]
    write_json(file, {**kept, "results": [*others, *({**r, "command": command, "beside": BESIDE} for r in fresh)]})


def _medians(seconds: Mapping[str, list[float]], on: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        record(
            "latency", float(np.median(times)), on=on, subject=name, kind="estimate", n=len(times),
            unit="s of CPU time, one training step on one thread",
        )
        for name, times in seconds.items()
    ]  # fmt: skip
    for r in found:
        print(f"{r['subject']}: {r['value'] * 1e3:.1f} ms")
    return found


def cpu_seconds(configs: Mapping[str, RunConfig], build: Build, on: str, rounds: int = 15) -> dict[str, list[float]]:
    """Of a step of each, by round: one thread, optimizer included."""
    return in_turns({name: one_step(config, build) for name, config in configs.items()}, on, rounds)


def in_turns(steps: Mapping[str, Callable[[], object]], on: str, rounds: int = 15) -> dict[str, list[float]]:
    """CPU seconds of each, by round, on one thread: all take turns; two rounds of warm-up are not kept."""
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for n in tqdm(range(rounds + 2), desc=f"{on}, training steps"):
        for name, run in steps.items():
            start = time.process_time()
            run()
            if n > 1:
                seconds[name].append(time.process_time() - start)
    return seconds


def one_step(config: RunConfig, build: Build) -> Callable[[], object]:
    task = build(config, Accelerator(cpu=True))
    precision = "bfloat16" if config.training.precision == "auto" else config.training.precision
    module = SliceLoss(task.model, task.objective, precision)
    samples = torch.arange(config.training.batch_size)
    batch, rng = task.train.batch(0, samples), Rng(0, samples)
    module.teach(task.model)
    optimizers = make_optimizers(module, replace(config.optimizer, lr=1e-12))

    def run() -> None:
        module(batch, rng, TIMED_STEP).sum.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return run


def seconds_of_a_step(file: Path, command: str) -> dict[str, float]:
    """command: what measures them."""
    if not file.exists():
        raise SystemExit(f"{file} is missing: {command}")
    return {r["subject"]: r["value"] for r in json.loads(file.read_text())["results"]}
