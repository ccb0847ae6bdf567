"""`leaplm perplexity` of a flow language model: bounds and estimates, each with its two errors and its network calls."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from eval.baseline_likelihood import ESTIMATOR, score_windows
from eval.certificate import Certificate, of_score
from eval.flow import FlowRun, grid_of
from eval.flow_records import Made, Request, flow_records
from eval.flow_text import freed, scored_text
from flowlm.likelihood import (
    Curve,
    FewStep,
    FromZero,
    Score,
    enumerated,
    fit_clock,
    fit_grid,
    fit_inflation,
    importance,
    k_step,
    measure,
    ode,
    vlb,
)
from flowlm.likelihood.clock import Clock
from flowlm.likelihood.curve import CELLS
from flowlm.likelihood.denoiser import check
from flowlm.likelihood.terms import snr_of
from flowmap.objectives.tokens import TokenStates
from flowmap.rng import Rng
from flowmap.self_conditioning import TwoPass

FIT_SEED = 1_000_003
"""Added to the seed of the draws: what is fitted sees other noise."""
NOISES = 128
"""That a curve is measured under, at least."""
STEPS = (1, 2, 4, 8)
"""That are scored where none are asked for."""
CERTIFIED_CALLS = 64
"""Network calls a string at least, where strings are added up."""
ODE_SLACK = 2e-3
"""Nats/token by which the flow may end early: from nearer to the data it is stiff."""


@dataclass(frozen=True)
class Certified:
    """block: of models that write in blocks."""

    certificate: Certificate
    block: int | None


def measure_flow(run: FlowRun, args: Any) -> tuple[list[dict[str, Any]], list[Certified]]:
    """All records of one run, or certificates where they were asked for: of each block length."""
    if args.length not in (None, run.model.config.length):
        raise ValueError(f"--length {args.length}: {run.name} is a law of windows of {run.model.config.length} tokens")
    name = estimator_of(run, args.estimator)
    if args.from_zero and name != "k-step":
        raise ValueError(f"--from-zero: {name} shows the network no state of pure noise alone, k-step does")
    records: list[dict[str, Any]] = []
    certified = []
    own = tuple(int(n) for n in getattr(run.model.config, "grids", None) or {}) if name == "k-step" else ()
    steps = (own or STEPS) if args.steps is None else args.steps
    for block in block_lengths(run, args.blocks):
        asked = Request(name, steps, args.calls, args.draws, args.sampler, args.seed, args.from_zero, block)
        text = scored_text(run, args.data, args.text_column, args.split, args.windows, args.fit, block)
        estimator = Estimators(run, text.training, asked)
        if args.certify:
            strings = freed(text.states, run.model.config.vocab_size)
            certified.append(Certified(estimator.certify(strings), block))
        else:
            for made in estimator.scores(text.states, text.weights is not None):
                records += flow_records(run, made, text, asked)
    return records, certified


def block_lengths(run: FlowRun, asked: Sequence[int] | None) -> list[int | None]:
    """Those to be scored: what was asked for, of those it was trained with, or the longest; of a law of whole windows none."""
    known = run.model.config.block_lengths
    if not known:
        if asked:
            raise ValueError(f"--block {asked[0]}: {run.name} was trained on whole windows, leave it out")
        return [None]
    if wrong := [block for block in asked or () if block not in known]:
        raise ValueError(f"--block {wrong[0]}: {run.name} was trained with blocks of {', '.join(map(str, known))}")
    return list(dict.fromkeys(asked or [max(known)]))


def estimator_of(run: FlowRun, name: str | None) -> str:
    """What was asked for where the model has it, by default its first."""
    own = ESTIMATOR.get(run.model.config.model_type)
    if name is None and getattr(run.model.config, "grids", None):
        return "k-step"
    if name in (None, own) or (own is None and name not in ESTIMATOR.values()):
        return name or own or "vlb"
    raise ValueError(f"--estimator {name}: {run.name} has {own or 'vlb, k-step, ode and sampler'}")


def asked_as_trained(run: FlowRun) -> Any:
    """The run's map, by two passes where it was trained so: inside a step, both differentiated."""
    if getattr(run.model.map, "finishes", False):
        raise ValueError(
            f"{run.name} walks through codes that depend on the whole window: no bound over a table of codes holds for it, "
            "judge its samples (leaplm quality)"
        )
    told = getattr(run.model.config, "self_conditioning", 0) > 0
    return TwoPass(run.model.map, through=True) if told else run.model.map


class Estimators:
    """Estimators of one run, fitted on its training windows as they are needed; without any, only what needs no fit."""

    def __init__(self, run: FlowRun, training: TokenStates | None, asked: Request) -> None:
        own = asked_as_trained(run)
        self.run, self.map, self.asked = run, FromZero(own) if asked.from_zero else own, asked
        self._training, self._proved = training, False

    def _addressed(self, samples: Tensor, seed: int) -> Rng:
        return Rng(seed, samples.to(self.run.model.device))

    @property
    def training(self) -> TokenStates:
        if self._training is None:
            raise ValueError(
                f"{self.run.name} does not say what it was trained on, and {self.asked.estimator} is fitted on that: name a "
                "text or a suite with data"
            )
        return self._training

    @property
    def rng(self) -> Rng:
        """Of what is fitted."""
        return self._addressed(torch.arange(self.training.size), self.asked.seed + FIT_SEED)

    def _addressed_often(self) -> Rng:
        return self._addressed(torch.arange(self.often.size), self.asked.seed + FIT_SEED)

    @cached_property
    def often(self) -> TokenStates:
        """The same, few windows so often that there are NOISES of them: a window's noise is one in all cells of a curve."""
        size = self.training.size
        return self.training[torch.arange(size * -(-NOISES // size), device=self.training.tokens.device) % size]

    @cached_property
    def curve(self) -> Curve:
        draws = max(8, -(-16 * CELLS // self.often.size))
        return measure(self.map, self.often, self._addressed_often(), draws=draws)

    @cached_property
    def clock(self) -> Clock:
        """Of the variational bound: the one of least variance, or, without text to fit it on, one that is even in log S up to
        the least time that was trained."""
        if self._training is not None:
            return fit_clock(self.map, self.often, self._addressed_often(), self.curve)
        codes = self.map.codebook.encode(
            torch.arange(min(256, self.run.model.config.vocab_size), device=self.run.model.device)
        )
        length = float(codes.detach().square().sum(-1).mean()) * self.run.model.config.length
        return Clock.even(1e-3 / length, snr_of(self.map.path, self.map.t_min), CELLS)

    def scores(
        self, states: TokenStates, listed: bool, calls: int = 0, addresses: Tensor | None = None
    ) -> Iterator[Made]:
        """listed: every prompt's answers are there, so that one noise may serve them all, except of blocks, which stand behind
        a text each. calls: at least so many. addresses: of the randomness of each row, default its place."""
        asked = replace(self.asked, calls=max(calls, self.asked.calls))
        rng = self._addressed(torch.arange(states.size) if addresses is None else addresses, asked.seed)
        if asked.estimator in ESTIMATOR.values():
            yield Made(score_windows(self.run, states, rng, asked.calls))
            return
        if asked.estimator == "vlb":
            yield Made(vlb(self.map, states, rng, self.clock, asked.calls, trusted=self._checked(states)))
        for steps in self._numbers_of_steps():
            if asked.estimator == "k-step":
                draws = max(2, asked.calls // (steps + 1))
                grid, told = self._grid(steps)
                score = k_step(self.map, states, rng, grid, draws, self._checked(states), told)
                yield Made(score, steps, steps + 1, told)
            elif asked.estimator == "ode":
                end = float(self.curve.edges[self.curve.end(ODE_SLACK)])
                yield Made(ode(self.map, states, rng, end, steps, draws=2))
            else:
                yield self._sampler(states, rng, steps, listed)

    def _numbers_of_steps(self) -> Sequence[int]:
        """What was asked for; of a map that was trained for some numbers of steps alone, those of them."""
        if self.asked.estimator == "vlb":
            return ()
        grids = getattr(self.run.model.config, "grids", None)
        if self.asked.estimator != "k-step" or not grids:
            return self.asked.steps
        if not (found := [steps for steps in self.asked.steps if str(steps) in grids]):
            told = ", ".join(grids)
            raise ValueError(f"--steps {self.asked.steps[0]}: {self.run.name} was trained for {told} ancestral steps")
        return found

    def _grid(self, steps: int) -> tuple[Tensor, bool]:
        """S of so many steps, and whether the network is told where each lands: as it was trained, or fitted here."""
        grids = getattr(self.run.model.config, "grids", None)
        if grids:
            return torch.tensor(grids[str(steps)], dtype=torch.float64), True
        return fit_grid(self.curve, steps), False

    def _sampler(self, states: TokenStates, rng: Rng, steps: int, listed: bool) -> Made:
        times = self.run.model.times_on(grid_of(self.run), steps)
        law = FewStep(self.map, steps, self.asked.sampler, times)
        if listed and self.asked.block is None:
            return Made(together(law, states, self.asked.seed, self.asked.draws), steps, law.nfe)
        end = float(self.curve.edges[self.curve.end(ODE_SLACK)])
        rho = fit_inflation(law, self.training, self.rng, end)
        return Made(importance(law, states, rng, rho, end), steps, law.nfe)

    def certify(self, strings: TokenStates) -> Certificate:
        """strings: one position at every token of the vocabulary, the rest known. The worst of what was asked for."""
        found = [of_score(made.score) for made in self.scores(strings, True, CERTIFIED_CALLS)]
        return max(found, key=lambda one: one.total - 3 * one.stderr)

    def _checked(self, states: TokenStates) -> bool:
        """That the network keeps nothing between calls, once."""
        if not self._proved:
            check(self.map, states.tokens, states.context)
            self._proved = True
        return True


def together(law: FewStep, states: TokenStates, seed: int, draws: int) -> Score:
    """Sequences that share what is known share their noise: one `enumerated` for each prompt."""
    shown = torch.full_like(states.tokens, -1)
    if states.context is not None:
        shown = torch.where(states.context.at, states.context.tokens, shown)
    _, prompt = shown.unique(dim=0, return_inverse=True)
    scores: list[tuple[Tensor, Score]] = []
    for number in range(int(prompt.max()) + 1):
        rows = torch.nonzero(prompt == number)[:, 0]
        part = states[rows]
        scored = None if part.scored is None else part.scored[0]
        scores.append((rows.cpu(), enumerated(law, part.tokens, seed + number, draws, part.context, scored)))
    order = torch.cat([rows for rows, _ in scores]).argsort()
    return joined([score for _, score in scores], order)


def joined(scores: list[Score], order: Tensor) -> Score:
    """Scores of different sequences, whose noises are independent, as one."""
    sizes, before = [len(one.nats) for one in scores], 0
    parts = []
    for one, size in zip(scores, sizes, strict=True):
        for part in one.parts:
            blank = part.repeats.new_zeros(len(part.repeats), sum(sizes))
            blank[:, before : before + size] = part.repeats
            parts.append(replace(part, repeats=blank[:, order]))
        before += size
    nats, tokens = (torch.cat([getattr(one, name) for one in scores])[order] for name in ("nats", "tokens"))
    details = {"draws": scores[0].details["draws"]}
    if len(scores) == 1:
        details = scores[0].details
    return replace(scores[0], nats=nats, tokens=tokens, parts=tuple(parts), details=details)
