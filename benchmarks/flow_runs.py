"""Runs of flow language models: trained, each after the runs that it begins with or learns from; sampled by calls of the network."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.cells import cell_name
from benchmarks.samplers import FEWEST, grids_of, passes_of, samplers_of, told_for
from eval.flow import FlowRun, Sampling, samplings
from flowmap.warp import Warp
from training.config import RunConfig, load_preset, override, to_dict
from training.flow_models import OBJECTIVES
from training.loop import train
from training.run_dir import RunDir
from training.tasks import build

EARLIER = ("start", "teacher", "encoder")
"""Fields of `flow` that may name a run that is trained before."""


FRONT = 4
"""Steps of a token that starts one step after the one before it."""


@dataclass(frozen=True)
class Planned:
    """folder: where the runs of one data set lie. fields: by preset, what a cell sets in it, of its data. everywhere: what the
    command sets in a preset and those before it; variant: in the preset alone. budget: windows that are read in all, by a preset and those before it
    in the proportion of their own steps; None: as each preset has it. share: of the budget that is this run's."""

    preset: str
    folder: Path
    seed: int
    fields: Callable[[str], dict[str, Any]]
    variant: dict[str, Any]
    everywhere: dict[str, Any] = field(default_factory=dict)
    budget: int | None = None
    share: float | None = None

    @property
    def name(self) -> str:
        """Of a run that has a part of the budget, how many steps that is."""
        part = {} if self.share is None else {"training__steps": self.config().training.steps}
        return cell_name(self.preset, self.seed, self.everywhere | self.variant | part)

    @property
    def path(self) -> Path:
        """Its run directory."""
        return self.folder / self.name

    @property
    def subject(self) -> str:
        return ", ".join(
            [
                self.preset,
                *(f"{key.split('__')[-1]} {value}" for key, value in (self.everywhere | self.variant).items()),
            ]
        )

    def config(self) -> RunConfig:
        config = override(load_preset(self.preset), seed=self.seed, **self.fields(self.preset))
        if self.budget is not None:
            share = self.own_share() if self.share is None else self.share
            config = override(config, training__steps=max(1, round(share * self.budget / config.training.batch_size)))
        return override(config, **self.everywhere | self.variant)

    def own_share(self) -> float:
        """Of what a preset and those before it read as they are, what it reads itself."""
        own = windows_of(self.preset)
        return own / (own + sum(windows_of(name) for name in set(self.named().values())))

    def named(self) -> dict[str, str]:
        """By the field of `flow` that names it, the preset whose run is trained before."""
        flow = override(load_preset(self.preset), **self.everywhere | self.variant).flow
        named = {part: getattr(flow, part) or "" for part in EARLIER}
        return {part: run.removeprefix("runs/") for part, run in named.items() if run.startswith("runs/")}

    def earlier(self) -> dict[str, "Planned"]:
        """By the field that names it."""
        named = self.named()
        shares = {name: (1 - self.own_share()) / len(set(named.values())) for name in named.values()}
        return {
            part: replace(self, preset=name, variant={}, share=None if self.budget is None else shares[name])
            for part, name in named.items()
        }

    def inputs(self) -> dict[str, Any]:
        """What a cell's hash is of."""
        return {
            **stated(self.config()),
            "earlier": {part: stated(one.config()) for part, one in self.earlier().items()},
        }

    def train(self) -> tuple[Path, float]:
        """Its run, and the CPU seconds of its training and of those before it."""
        config, done = self.config(), dict[Path, float]()
        for part, before in self.earlier().items():
            folder, seconds = before.train()
            done[folder] = seconds
            setattr(config.flow, part, str(folder))
        train(config, self.path, build)
        return self.path, RunDir(self.path).cpu_seconds() + sum(done.values())


def stated(config: RunConfig) -> dict[str, Any]:
    """Its fields, and the version of what its objective computes by them."""
    assert config.flow is not None
    return {**to_dict(config), "objective": getattr(OBJECTIVES.get(config.flow.objective), "version", None)}


def as_it_is(preset: str) -> dict[str, Any]:
    """`Planned.fields` of data that ask for nothing."""
    return {}


def windows_of(preset: str) -> int:
    """That its training reads, as it is."""
    plan = load_preset(preset).training
    return plan.steps * plan.batch_size


def by_calls(
    run: FlowRun,
    calls: Sequence[int],
    seed: int,
    warp: Warp | None = None,
    block_steps: Sequence[int] = (1, 2, 4, 8),
    score: float = 1.0,
) -> Iterator[Sampling]:
    """The measured ways of the model to write, asked as in `samplers.told_for`; none where there are no calls. Whole windows: at so many calls of its network a sample, by every sampler, and where
    it conditions on itself by one pass a step too. Of a model of blocks: every length, at block_steps steps a block, as many as it has
    tokens at most. Where there is a
    decoder of its own, by the nearest codes too, which draw nothing: at temperature 0 alone. Where tokens have times of their own, one token
    a step too, FRONT steps each, whatever the calls. score: the score temperature."""
    if not calls:
        return
    lengths, all_passes = run.model.config.block_lengths or [None], passes_of(run.model)
    nearest = getattr(run.model.config, "rounding", None) and warp is not None and warp.temperature == 0
    decoders = (None, "nearest") if nearest else (None,)
    for sampler, length, passes, decoder in product(samplers_of(run.model), lengths, all_passes, decoders):
        once = False if passes < max(all_passes) else None
        told = told_for(run.model, sampler)
        asked = SimpleNamespace(block=length, self_conditioning=once, decoder=decoder, score_temperature=score, **told)
        of_block = [n for n in block_steps if length and n <= length]
        steps = run.model.grids(of_block) if length else grids_of(run.model, calls, passes)
        few = [n for n in steps if n >= FEWEST.get(sampler, 1)]
        yield from samplings(run, few, sampler, warp, seed, asked)
    if getattr(run.model.config, "noise", None) == "token":
        asked = SimpleNamespace(delay=1, score_temperature=score)
        yield from samplings(run, [FRONT], samplers_of(run.model)[0], warp, seed, asked)


def largest(presets: Sequence[str]) -> int:
    """Windows that the longest of these trainings reads, those before it included: a budget that none has to be cut for."""
    chains = ((name, set(Planned(name, Path(), 0, as_it_is, {}).named().values())) for name in presets)
    return max(windows_of(name) + sum(map(windows_of, before)) for name, before in chains)
