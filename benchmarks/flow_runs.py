"""Runs of flow language models: trained, each after the runs that it begins with or learns from; sampled by calls of the network."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cells import cell_name
from benchmarks.samplers import grids_of, samplers_of
from eval.flow import FlowRun, Sampling, samplings
from flowmap.warp import Warp
from training.config import RunConfig, load_preset, override, to_dict
from training.loop import train
from training.tasks import build


@dataclass(frozen=True)
class Planned:
    """folder: where the runs of one data set lie. fields: what a cell sets in every preset, of data and seed. variant: what
    the command sets in the preset and in those before it."""

    preset: str
    folder: Path
    seed: int
    fields: dict[str, Any]
    variant: dict[str, Any]

    @property
    def name(self) -> str:
        return cell_name(self.preset, self.seed, self.variant)

    @property
    def subject(self) -> str:
        return ", ".join([self.preset, *(f"{key.split('__')[-1]} {value}" for key, value in self.variant.items())])

    def config(self) -> RunConfig:
        return override(load_preset(self.preset), seed=self.seed, **self.fields, **self.variant)

    def earlier(self) -> dict[str, "Planned"]:
        """By the field of `flow` that names it."""
        flow = self.config().flow
        named = {part: getattr(flow, part) for part in ("start", "teacher")}
        return {
            part: Planned(run.removeprefix("runs/"), self.folder, self.seed, self.fields, self.variant)
            for part, run in named.items()
            if run
        }

    def inputs(self) -> dict[str, Any]:
        """What a cell's hash is of."""
        return {
            **to_dict(self.config()),
            "earlier": {part: to_dict(one.config()) for part, one in self.earlier().items()},
        }

    def train(self) -> tuple[Path, float]:
        """Its run, and the CPU seconds of its training as far as it was not done before."""
        config = self.config()
        for part, before in self.earlier().items():
            setattr(config.flow, part, str(before.train()[0]))
        start, folder = time.process_time(), self.folder / self.name
        train(config, folder, build)
        return folder, time.process_time() - start


def by_calls(run: FlowRun, calls: Sequence[int], seed: int, warp: Warp | None = None) -> Iterator[Sampling]:
    """The measured samplers of the model, at so many calls of its network a sample."""
    for sampler in samplers_of(run.model):
        yield from samplings(run, grids_of(run.model, calls), sampler, warp, seed=seed)
