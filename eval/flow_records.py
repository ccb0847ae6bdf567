"""What is said of a flow language model's likelihood: records, and lines on the screen."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eval.certificate import Certificate
from eval.flow import FlowRun, grid_of
from eval.flow_text import Scored
from eval.likelihood import standard_error
from eval.records import record
from eval.tables import print_row
from flowlm.likelihood import Score


@dataclass(frozen=True)
class Request:
    """steps: of the k-step bound, the flow, or the sampler. calls: of the network for each sequence (vlb, k-step, ode). draws:
    of the sampler's noise. from_zero: the k-step bound of a network that is shown z = 0 for noise. block: tokens of a block,
    of models that write in blocks."""

    estimator: str = "vlb"
    steps: tuple[int, ...] = (1, 2, 4, 8)
    calls: int = 16
    draws: int = 4096
    sampler: str = "pushforward"
    seed: int = 0
    from_zero: bool = False
    block: int | None = None


@dataclass(frozen=True)
class Made:
    """steps, nfe: of the sampler that is scored, where it is one; of each block, if there are. told: its network hears where
    each step lands."""

    score: Score
    steps: int | None = None
    nfe: int | None = None
    told: bool = False


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
        "estimator": asked.estimator, "steps": score.details.get("steps") if made.steps is None else made.steps, "nfe": score.nfe if made.nfe is None else made.nfe * text.blocks, "calls": score.nfe,
        "dtype": "float32", "ema": run.ema, "context": run.model.config.length,
        **({"sampler": asked.sampler, "decoder": "softmax", "grid": grid_of(run)} if asked.estimator == "sampler" else {}),
        **({} if asked.block is None else {"block": asked.block, "num_blocks": text.blocks}),
        **({"state": "zero"} if asked.from_zero else {}),
        **({"told": True} if made.told else {}),
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
        law = " ".join(filter(None, [law, f"B={block}" if (block := contract.get("block")) else ""]))
        error = f"{r['stderr']:.2g}" if r.get("stderr_over") == "documents" else ""
        print_row(f"{law} {r['metric']}", f"{r['value']:.5g}", error, f"{r['monte_carlo']:.2g}", r["kind"], r["unit"])


def print_certificate(run: FlowRun, estimator: str, block: int | None, got: Certificate) -> None:
    said = "passed" if got.holds else "NOT passed: this score is no likelihood"
    of = estimator if block is None else f"{estimator} in blocks of {block}"
    print(
        f"{run.subject}, {of}: Σ exp(−score) over the {run.model.config.vocab_size} tokens of one position = "
        f"{got.total:.4f} ± {got.stderr:.4f}, {said}"
    )
