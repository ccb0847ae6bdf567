"""`leaplm perplexity` of a flow language model: bounds and estimates, each with its two errors and its network calls."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.baseline_likelihood import ESTIMATOR, score_windows
from eval.certificate import Certificate, of_score
from eval.flow import FlowRun
from eval.flow_text import Scored, freed, scored_text
from eval.likelihood import standard_error
from eval.records import record
from eval.tables import print_row
from flowlm.likelihood import (
    Curve,
    FewStep,
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
from flowlm.likelihood.curve import CELLS
from flowlm.token_map import Known
from flowmap.objectives.tokens import TokenStates
from flowmap.rng import Rng
from flowmap.self_conditioning import TwoPass

FIT_SEED = 1_000_003
"""Added to the seed of the draws: what is fitted sees other noise."""
CERTIFIED_CALLS = 64
"""Network calls a string at least, where strings are added up."""
ODE_SLACK = 2e-3
"""Nats/token by which the flow may end early: from nearer to the data it is stiff."""


@dataclass(frozen=True)
class Request:
    """steps: of the k-step bound, the flow, or the sampler. calls: of the network for each sequence (vlb, k-step, ode). draws:
    of the sampler's noise."""

    estimator: str = "vlb"
    steps: tuple[int, ...] = (1, 2, 4, 8)
    calls: int = 16
    draws: int = 4096
    sampler: str = "pushforward"
    seed: int = 0


@dataclass(frozen=True)
class Made:
    """steps, nfe: of the sampler that is scored, where it is one."""

    score: Score
    steps: int | None = None
    nfe: int | None = None


def measure_flow(run: FlowRun, args: Any) -> tuple[list[dict[str, Any]], Certificate | None]:
    """All records of one run, and the certificate where it was asked for."""
    if args.length not in (None, run.model.config.length):
        raise ValueError(f"--length {args.length}: {run.name} is a law of windows of {run.model.config.length} tokens")
    asked = Request(estimator_of(run, args.estimator), args.steps, args.calls, args.draws, args.sampler, args.seed)
    text = scored_text(run, args.data, args.text_column, args.split, args.windows, args.fit)
    estimator = Estimators(run, text.training, asked)
    records: list[dict[str, Any]] = []
    certificate = None
    if args.certify:
        strings = freed(text.states, run.model.config.vocab_size, Known)
        certificate = estimator.certify(strings)
    else:
        for made in estimator.scores(text.states, text.weights is not None):
            records += flow_records(run, made, text, asked)
    return records, certificate


def estimator_of(run: FlowRun, name: str | None) -> str:
    """What was asked for where the model has it, by default its first."""
    own = ESTIMATOR.get(run.model.config.model_type)
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
    """Estimators of one run, fitted on its training windows as they are needed."""

    def __init__(self, run: FlowRun, training: TokenStates, asked: Request) -> None:
        self.run, self.map, self.training, self.asked = run, asked_as_trained(run), training, asked
        self.rng = self._addressed(training.size, asked.seed + FIT_SEED)
        self._curve: Curve | None = None

    @staticmethod
    def _addressed(rows: int, seed: int) -> Rng:
        return Rng(seed, torch.arange(rows))

    @property
    def curve(self) -> Curve:
        if self._curve is None:
            draws = max(8, -(-16 * CELLS // self.training.size))
            self._curve = measure(self.map, self.training, self._on_device(self.rng), draws=draws)
        return self._curve

    def scores(self, states: TokenStates, listed: bool, calls: int = 0) -> Iterator[Made]:
        """listed: every prompt's answers are there, so that one noise may serve them all. calls: at least so many."""
        asked, rng = (
            replace(self.asked, calls=max(calls, self.asked.calls)),
            self._on_device(self._addressed(states.size, self.asked.seed)),
        )
        if asked.estimator in ESTIMATOR.values():
            yield Made(score_windows(self.run, states, asked.seed, asked.calls))
            return
        if asked.estimator == "vlb":
            clock = fit_clock(self.map, self.training, self._on_device(self.rng), self.curve)
            yield Made(vlb(self.map, states, rng, clock, asked.calls))
        for steps in asked.steps if asked.estimator != "vlb" else ():
            if asked.estimator == "k-step":
                draws = max(2, asked.calls // (steps + 1))
                yield Made(k_step(self.map, states, rng, fit_grid(self.curve, steps), draws), steps, steps + 1)
            elif asked.estimator == "ode":
                end = float(self.curve.edges[self.curve.end(ODE_SLACK)])
                yield Made(ode(self.map, states, rng, end, steps, draws=2))
            else:
                yield self._sampler(states, rng, steps, listed)

    def _sampler(self, states: TokenStates, rng: Rng, steps: int, listed: bool) -> Made:
        law = FewStep(self.map, steps, self.asked.sampler)
        if listed:
            return Made(together(law, states, self.asked.seed, self.asked.draws), steps, law.nfe)
        end = float(self.curve.edges[self.curve.end(ODE_SLACK)])
        rho = fit_inflation(law, self.training, self._on_device(self.rng), end)
        return Made(importance(law, states, rng, rho, end), steps, law.nfe)

    def certify(self, strings: TokenStates) -> Certificate:
        """strings: one position at every token of the vocabulary, the rest known. The worst of what was asked for."""
        found = [of_score(made.score) for made in self.scores(strings, True, CERTIFIED_CALLS)]
        return max(found, key=lambda one: one.total - 3 * one.stderr)

    def _on_device(self, rng: Rng) -> Rng:
        assert rng.samples is not None
        return Rng(rng.seed, rng.samples.to(self.training.tokens.device), rng.batch)


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


def flow_records(run: FlowRun, made: Made, text: Scored, asked: Request) -> list[dict[str, Any]]:
    """nll, perplexity and, of text, bits per byte. stderr is over documents; of a law that is known whole, Monte Carlo."""
    score = replace(made.score, tokens=text.tokens)
    if text.weights is not None:
        score = score.under(text.weights)
    data = None
    if text.documents is not None:
        sums, count = (
            np.bincount(text.documents, weights=part.numpy(), minlength=text.documents.max() + 1)
            for part in (score.nats, score.tokens)
        )
        data = standard_error(sums[count > 0], count[count > 0])
    contract = {
        "estimator": asked.estimator, "steps": score.details.get("steps") if made.steps is None else made.steps, "nfe": made.nfe or score.nfe, "calls": score.nfe,
        "dtype": "float32", "ema": run.ema, "context": run.model.config.length,
        **({"sampler": asked.sampler, "decoder": "softmax"} if asked.estimator == "sampler" else {}),
    }  # fmt: skip
    common: dict[str, Any] = {
        "on": text.on, "subject": run.subject, "kind": score.kind, "n": int(text.tokens.sum()), "split": text.split, "run": run.name,
        "train_seed": run.train_seed, "sample_seed": asked.seed, "contract": contract,
        "stderr_over": "monte-carlo" if text.documents is None else "documents",
        "details": {name: value for name, value in score.details.items() if name != "grid"},
    }  # fmt: skip
    error = score.monte_carlo if text.documents is None else data
    scales = {"nll": (1.0, "nats/token")}
    if text.per_byte is not None:
        scales["bits_per_byte"] = (text.per_byte / math.log(2), "bits/byte")
    rows = [
        record(metric, score.value * by, unit=unit, monte_carlo=score.monte_carlo * by,
               stderr=None if error is None else error * by, **common)
        for metric, (by, unit) in scales.items()
    ]  # fmt: skip
    ppl = math.exp(score.value)
    rows.insert(
        1, record("perplexity", ppl, unit="per token", monte_carlo=ppl * score.monte_carlo,
                  stderr=None if error is None else ppl * error, **common),
    )  # fmt: skip
    return rows


def print_flow(run: FlowRun, records: list[dict[str, Any]]) -> None:
    print_row(f"\n{run.subject}", "value", "data error", "Monte Carlo error", "kind", "unit")
    for r in records:
        contract = r["contract"]
        law = contract["estimator"] if contract["steps"] is None else f"{contract['estimator']} {contract['steps']}"
        error = f"{r['stderr']:.2g}" if r.get("stderr_over") == "documents" else ""
        print_row(f"{law} {r['metric']}", f"{r['value']:.5g}", error, f"{r['monte_carlo']:.2g}", r["kind"], r["unit"])


def print_certificate(run: FlowRun, estimator: str, size: int, got: Certificate) -> None:
    said = "passed" if got.holds else "NOT passed: this score is no likelihood"
    print(
        f"{run.subject}, {estimator}: Σ exp(−score) over the {size} tokens of one position = {got.total:.4f} ± {got.stderr:.4f}, {said}"
    )
