"""Draw from a model by direct decoding and compare with a suite's exact law.

Counted so: every word of an answer up to K lies inside one block after one trunk pass (longer
answers take consecutive blocks, and the record says so); exact match, through the end token where
the suite has one; no retry; unfinished is invalid.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from eval.loading import LoadedRun
from eval.records import record
from eval.validity.suites import Suite
from mtp.decoding.direct import Decoded, decode, pad_left
from mtp.decoding.warp import Warp
from training.data.cases import EncodedSuite, encode_suite

UNFINISHED = "(unfinished)"
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
) -> Probe:
    """num: samples in all, the same number for every prompt."""
    warp = warp or Warp()
    encoded = encode_suite(suite, run.tokenizer)
    size = block or run.block_size
    if size != run.block_size and (run.config.get("data") or {}).get("cases"):
        raise ValueError(f"{run.name} was trained on cases for blocks of {run.block_size} alone: leave --block out")
    batch = max(1, min(batch, MOST_LOGITS // (len(run.tokenizer) * size)))
    per_prompt = max(1, num // len(suite.laws))
    prompts = [prompt for prompt in suite.prompts for _ in range(per_prompt)]
    counts: dict[str, Counter] = {prompt: Counter() for prompt in suite.prompts}
    end = run.tokenizer.eos_token_id
    passes = 0
    for low in range(0, len(prompts), batch):
        part = prompts[low : low + batch]
        out = decode(
            run.model,
            *pad_left([encoded.starts[prompt] for prompt in part], end),
            max_new_tokens=encoded.longest,
            warp=warp,
            seed=seed,
            rows=torch.arange(low, low + len(part)),
            block_size=block,
            stop_tokens=(end,) if encoded.closed else (),
            pad_token=end,
        )
        passes = max(passes, out.trunk_passes)
        for prompt, text in zip(part, _texts(run, out, encoded.closed), strict=True):
            counts[prompt][text] += 1
    contract = {
        "block": size, "steps": 1, "nfe": passes, "temperature": warp.temperature, "top_p": warp.top_p, "batch": batch,
        "dtype": "float32", "verify": "none", "ema": run.ema, "trunk_passes": passes,
        "one_block": encoded.longest <= size, "end_token": encoded.closed,
    }  # fmt: skip
    common: dict[str, Any] = {
        "on": suite.name, "subject": run.subject, "run": run.name, "split": "law", "train_seed": run.train_seed,
        "sample_seed": seed, "contract": contract,
    }  # fmt: skip
    records = score(suite, counts, per_prompt, common)
    if warp == Warp() and encoded.longest <= size and encoded.one_token_per_word:
        exact = exact_variation(run, encoded)
        records.append(record("total_variation_exact", exact, kind="exact", unit="fraction", **common))
    return Probe(suite, run.subject, counts, records)


def score(suite: Suite, counts: Mapping[str, Counter], n: int, common: dict[str, Any]) -> list[dict[str, Any]]:
    """Validity, total variation, coverage and entropy of n draws a prompt; means over prompts.

    Beside the last three stands what exact sampling shows at this n (subject exact-sampler): all
    three are biased by n. Standard errors are over samples: the binomial's with one draw of each kind
    added (so that 100% is not certain), the bootstrap's, and the spread of one exact experiment.
    """
    rng = np.random.default_rng(0)
    validity, drawn, resampled, exact = [], [], [], []
    for prompt, law in suite.laws.items():
        texts = list(dict.fromkeys([*law, *counts[prompt]]))
        p = np.array([law.get(text, 0.0) for text in texts])
        q = np.array([counts[prompt][text] for text in texts]) / n
        validity.append(float(q[p > 0].sum()))
        drawn.append(_statistics(p, q[None]))
        resampled.append(_statistics(p, rng.multinomial(n, q / q.sum(), size=RESAMPLES) / n))
        exact.append(_statistics(p, rng.multinomial(n, p / p.sum(), size=RESAMPLES) / n))
    prompts = len(suite.laws)
    samples: dict[str, Any] = {"kind": "estimate", "stderr_over": "samples", "n": n * prompts}
    smoothed = (np.array(validity) * n + 1) / (n + 2)
    binomial = float(np.sqrt((smoothed * (1 - smoothed)).sum() / n) / prompts)
    records = [record("validity", float(np.mean(validity)), stderr=binomial, unit="fraction", **samples, **common)]
    nobody = {**common, "subject": "exact-sampler", "run": None, "train_seed": None}
    for k, (metric, unit) in enumerate(STATISTICS.items()):
        own, spread, best = (np.mean(part, 0)[k] for part in (drawn, resampled, exact))
        records.append(record(metric, own[0], stderr=float(spread.std()), unit=unit, **samples, **common))
        records.append(record(metric, best.mean(), stderr=float(best.std()), unit=unit, **samples, **nobody))
    return records


STATISTICS = {"total_variation": "fraction", "coverage": "fraction", "entropy": "nats"}
RESAMPLES = 200


def _statistics(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """p: (texts,) the law; q: (experiments, texts) fractions drawn → (3, experiments), as in STATISTICS."""
    variation = np.abs(q - p).sum(1) / 2
    coverage = (q[:, p > 0] > 0).mean(1)
    entropy = -(q * np.log(np.where(q > 0, q, 1))).sum(1)
    return np.stack([variation, coverage, entropy])


def exact_variation(run: LoadedRun, encoded: EncodedSuite) -> float:
    """½ Σ |q − p| with q read off the head itself: no sampling. Mass outside the law counts whole."""
    result = []
    for prompt, law in encoded.suite.laws.items():
        start = torch.tensor([encoded.starts[prompt]], device=run.model.device)
        hidden, _ = run.model.states(start)
        texts = list(law)
        q = torch.zeros(len(texts), dtype=torch.float64)
        lengths = torch.tensor([len(encoded.answers[prompt][text]) for text in texts])
        for length in lengths.unique():
            for part in torch.nonzero(lengths == length).squeeze(1).split(4096):
                answers = torch.tensor([encoded.answers[prompt][texts[i]] for i in part.tolist()], device=start.device)
                context = run.model.context(hidden[:, -1].expand(len(part), -1))
                q[part] = run.head.log_prob(context, answers).double().sum(1).exp().cpu()
        p = torch.tensor([law[text] for text in texts], dtype=torch.float64)
        result.append(((q - p).abs().sum() + (1 - q.sum()).clamp_min(0)).item() / 2)
    return float(np.mean(result))


def _texts(run: LoadedRun, out: Decoded, closed: bool) -> list[str]:
    lengths = (out.lengths - out.stopped.long()) if closed else out.lengths
    rows = [tokens[:length] for tokens, length in zip(out.tokens.tolist(), lengths.tolist(), strict=True)]
    texts = [" ".join(text.split()) for text in run.tokenizer.batch_decode(rows)]
    if closed:
        texts = [
            text if done else f"{text} {UNFINISHED}" for text, done in zip(texts, out.stopped.tolist(), strict=True)
        ]
    return texts
