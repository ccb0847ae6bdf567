"""Draw from a model, by default by direct decoding, and compare with a suite's exact law.

Counted so: every word of an answer up to K lies inside one block after one trunk pass (longer
answers take consecutive blocks, and the record says so); exact match, through the end token where
the suite has one; no retry; unfinished is invalid.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from eval.loading import LoadedRun
from eval.records import record
from eval.validity.suites import Suite
from eval.validity.ways import Way
from flowmap.warp import Warp
from mtp.heads.past import Past
from training.data.cases import EncodedSuite, encode_suite

MOST_LOGITS = 2**28
"""Of a decoded batch, all positions of its blocks: 1 GiB of fp32."""


@dataclass(frozen=True)
class Probe:
    """counts: prompt → answers drawn, how often; records: the numbers."""

    suite: Suite
    subject: str
    counts: Mapping[str, Counter]
    records: list[dict[str, Any]]


@torch.no_grad()
def probe(
    run: LoadedRun,
    suite: Suite,
    *,
    num: int = 20_000,
    batch: int = 1024,
    warp: Warp | None = None,
    seed: int = 0,
    block: int | None = None,
    way: Way | None = None,
) -> Probe:
    """num: samples in all, the same number for every prompt."""
    warp, way = warp or Warp(), way or Way()
    encoded = encode_suite(suite, run.tokenizer)
    size = block or run.block_size
    if size not in (1, run.block_size) and (run.config.get("head") or {}).get("starts_only"):
        raise ValueError(
            f"{run.name} was trained for blocks of {run.block_size}: leave --block out, or 1 for the trunk alone"
        )
    batch = max(1, min(batch, MOST_LOGITS // (len(run.tokenizer) * size)))
    per_prompt = max(1, num // len(suite.laws))
    prompts = [prompt for prompt in suite.prompts for _ in range(per_prompt)]
    counts: dict[str, Counter] = {prompt: Counter() for prompt in suite.prompts}
    starts = [encoded.starts[prompt] for prompt in prompts]
    passes = 0
    for which, out in way.write(run, encoded, starts, warp=warp, seed=seed, block=block, batch=batch):
        passes = max(passes, out.trunk_passes)
        for prompt, text in zip(prompts[which], way.read(run, encoded, out, prompts[which]), strict=True):
            counts[prompt][text] += 1
    contract = {
        "block": size, "steps": getattr(run.model.head, "steps", 1) if size > 1 else 1, "nfe": passes, "temperature": warp.temperature, "top_p": warp.top_p, "batch": batch,
        "dtype": "float32", "verify": way.rule(run), "ema": run.ema, "trunk_passes": passes,
        "one_block": encoded.longest <= size, "end_token": encoded.closed and way.ending == "token",
    }  # fmt: skip
    common: dict[str, Any] = {
        "on": suite.name, "subject": way.subject(run, size), "run": run.name, "split": "law" if suite.train_laws is None else "held-out", "train_seed": run.train_seed,
        "sample_seed": seed, "contract": contract,
    }  # fmt: skip
    records = score(suite, counts, per_prompt, common)
    exact = size == 1 or run.head.exact
    if exact and way == Way() and warp == Warp() and encoded.longest <= size and encoded.one_token_per_word:
        laws = exact_laws(run, encoded, size)
        for metric, unit, apart in (("total_variation_exact", "fraction", variation), ("kl", "nats", divergence)):
            each = {prompt: apart(law, laws[prompt]) for prompt, law in suite.laws.items()}
            for stratum, prompts in strata(suite):
                mean = float(np.mean([each[prompt] for prompt in prompts]))
                records.append(record(metric, mean, kind="exact", unit=unit, **{**common, **stratum}))
    return Probe(suite, common["subject"], counts, records + dumb_records(suite, common))


def strata(suite: Suite) -> list[tuple[dict[str, str], list[str]]]:
    """All prompts, then each stratum's: what the records carry, and the prompts it is a mean over."""
    named = dict.fromkeys(suite.strata.values())
    parts = [({"stratum": name}, [p for p in suite.prompts if suite.strata[p] == name]) for name in named]
    return [({}, list(suite.prompts)), *parts]


def score(suite: Suite, counts: Mapping[str, Counter], n: int, common: dict[str, Any]) -> list[dict[str, Any]]:
    """Validity, total variation, coverage and entropy of n draws a prompt; means over prompts, and over
    each stratum's.

    Beside the last three stands what exact sampling shows at this n (subject exact-sampler): all
    three are biased by n. Standard errors are over samples: the binomial's with one draw of each kind
    added (so that 100% is not certain), the bootstrap's, and the spread of one exact experiment.
    """
    rng = np.random.default_rng(0)
    validity: dict[str, float] = {}
    drawn, resampled, exact = {}, {}, {}
    for prompt, law in suite.laws.items():
        texts = list(dict.fromkeys([*law, *counts[prompt]]))
        p = np.array([law.get(text, 0.0) for text in texts])
        q = np.array([counts[prompt][text] for text in texts]) / n
        validity[prompt] = float(q[p > 0].sum())
        drawn[prompt] = _statistics(p, q[None])
        resampled[prompt] = _statistics(p, rng.multinomial(n, q / q.sum(), size=RESAMPLES) / n)
        exact[prompt] = _statistics(p, rng.multinomial(n, p / p.sum(), size=RESAMPLES) / n)
    records = []
    nobody = {**common, "subject": "exact-sampler", "run": None, "train_seed": None}
    for stratum, prompts in strata(suite):
        samples: dict[str, Any] = {"kind": "estimate", "stderr_over": "samples", "n": n * len(prompts), **stratum}
        values, drawn_in_all = np.array([validity[prompt] for prompt in prompts]), n * len(prompts)
        smoothed = (values.sum() * n + 1) / (drawn_in_all + 2)
        binomial = float(np.sqrt(smoothed * (1 - smoothed) / drawn_in_all))
        records.append(record("validity", float(values.mean()), stderr=binomial, unit="fraction", **samples, **common))
        for k, (metric, unit) in enumerate(STATISTICS.items()):
            own, spread, best = (
                np.mean([part[prompt] for prompt in prompts], 0)[k] for part in (drawn, resampled, exact)
            )
            error = float(spread.std() * (n / (n - 1)) ** 0.5) if n > 1 else None  # one draw has no spread
            records.append(record(metric, own[0], stderr=error, unit=unit, **samples, **common))
            records.append(record(metric, best.mean(), stderr=float(best.std()), unit=unit, **samples, **nobody))
    return records


def dumb_records(suite: Suite, common: dict[str, Any]) -> list[dict[str, Any]]:
    """What the suite's dumb laws would reach: exact, from the laws alone."""
    records = []
    for name, laws in suite.dumb_laws.items():
        for stratum, prompts in strata(suite):
            own = {**common, "subject": name, "run": None, "train_seed": None, "kind": "exact", "unit": "fraction"}
            valid = [sum(q for text, q in laws[p].items() if suite.is_valid(p, text)) for p in prompts]
            apart = [
                sum(abs(laws[p].get(text, 0.0) - suite.laws[p].get(text, 0.0)) for text in {*laws[p], *suite.laws[p]})
                / 2
                for p in prompts
            ]
            records.append(record("validity", float(np.mean(valid)), **own, **stratum))
            records.append(record("total_variation_exact", float(np.mean(apart)), **own, **stratum))
    return records


STATISTICS = {"total_variation": "fraction", "coverage": "fraction", "entropy": "nats"}
RESAMPLES = 200


def _statistics(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """p: (texts,) the law; q: (experiments, texts) fractions drawn → (3, experiments), as in STATISTICS."""
    variation = np.abs(q - p).sum(1) / 2
    coverage = (q[:, p > 0] > 0).mean(1)
    entropy = -(q * np.log(np.where(q > 0, q, 1))).sum(1)
    return np.stack([variation, coverage, entropy])


def variation(law: Mapping[str, float], q: Mapping[str, float]) -> float:
    """½ Σ |q − p|; q: of the law's answers, what it lacks to 1 lies on others and counts whole."""
    apart = sum(abs(q[text] - p) for text, p in law.items())
    return (apart + max(0.0, 1 - sum(q.values()))) / 2


def divergence(law: Mapping[str, float], q: Mapping[str, float]) -> float:
    """KL(p ‖ q) in nats, infinite where q leaves an answer out."""
    return sum(p * (math.log(p / q[text]) if q[text] else math.inf) for text, p in law.items() if p)


def exact_laws(run: LoadedRun, encoded: EncodedSuite, size: int, batch: int = 4096) -> dict[str, dict[str, float]]:
    """prompt → q of every answer of its law, read off the head itself: no sampling."""
    rows = [(prompt, text) for prompt, law in encoded.suite.laws.items() for text in law]
    contexts = prompt_contexts(run, [encoded.starts[prompt] for prompt in encoded.suite.prompts])
    at = {prompt: i for i, prompt in enumerate(encoded.suite.prompts)}
    lengths = [len(encoded.answers[prompt][text]) for prompt, text in rows]
    q: dict[tuple[str, str], float] = {}
    for length in sorted(set(lengths)):
        chosen = [row for row, n in zip(rows, lengths, strict=True) if n == length]
        for low in range(0, len(chosen), batch):
            part = chosen[low : low + batch]
            answers = torch.tensor([encoded.answers[prompt][text] for prompt, text in part], device=run.model.device)
            context = contexts([at[prompt] for prompt, _ in part])
            log_q = _block_log_prob(run, context, answers, size)
            q |= dict(zip(part, log_q.double().exp().tolist(), strict=True))
    return {prompt: {text: q[prompt, text] for text in law} for prompt, law in encoded.suite.laws.items()}


def prompt_contexts(run: LoadedRun, starts: list[list[int]], batch: int = 1024) -> Callable[[list[int]], Any]:
    """Numbers of prompts → the context of the blocks after them. Prompts of one length are read together."""
    model, longest = run.model, max(map(len, starts))
    tokens = torch.tensor([start + [0] * (longest - len(start)) for start in starts], device=model.device)
    place = torch.tensor([len(start) - 1 for start in starts], device=model.device)
    hidden = torch.zeros(len(starts), longest, model.get_output_embeddings().weight.shape[1], device=model.device)
    for last in place.unique().tolist():
        for part in torch.nonzero(place == last)[:, 0].split(batch):
            hidden[part, : last + 1] = model.states(tokens[part, : last + 1])[0].float()

    def contexts(which: list[int]) -> Any:
        row = torch.tensor(which, device=model.device)
        past = Past(hidden, tokens, row, place[row]) if model.head is not None and model.head.needs_past else None
        return model.context(hidden[row, place[row]], past)

    return contexts


def _block_log_prob(run: LoadedRun, context: Any, answers: torch.Tensor, size: int) -> torch.Tensor:
    """(N,) nats of answers that fit one block."""
    if size == 1:
        return context.first_logits().float().log_softmax(-1).gather(1, answers)[:, 0]
    return run.head.log_prob(context, answers).sum(1)
