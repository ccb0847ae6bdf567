"""Quality of samples without a verifier: a judge's likelihood, beside what shows when it is gamed.

A judge alone is easily pleased by dull or repeated text, so unigram entropy, distinct-n and repetition always
stand beside it, and so does the real text that followed the same prompts (subject data), from whose law the samples' n-grams
and, of several samples a prompt, BrierLM tell the distance.
"""

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch

from eval.loading import LoadedRun
from eval.mauve import mauve
from eval.records import record
from eval.text_laws import REPEATED, brier, distinct, ngram_kl, repetition, unigram_entropy
from mtp.losses.linear_nll import row_nll
from training.data.tokenizer import start_token

NGRAMS = (1, 2, 4)
ALIKE = (
    "block", "temperature", "top_p", "threshold", "drawn", "steps", "sampler", "decoder", "self_conditioning", "grid", "order", "delay",
    "guidance", "renoise", "score_temperature",
)  # fmt: skip
"""What samples that are scored together have in common, of their contracts."""
COMPARED = (1, 2)
"""Lengths of the n-grams whose law is compared with the real one: longer ones hardly come twice."""


def quality(
    rows: Sequence[dict[str, Any]], judge: LoadedRun | None, on: str, with_mauve: bool = False
) -> list[dict[str, Any]]:
    """rows: samples; those of one subject and run that were written alike are scored together. Each block of a
    sample is a pass of the trunk, and so gives tokens_per_forward too. with_mauve: on the judge's states."""
    if with_mauve and judge is None:
        raise ValueError("--mauve compares the judge's states: name one with --judge")
    key = lambda row: (row["subject"], row["run"], *(row["contract"].get(name) for name in ALIKE))  # noqa: E731
    records: list[dict[str, Any]] = []
    for _, found in groupby(sorted(rows, key=lambda row: str(key(row))), key):
        group = list(found)
        first = group[0]
        more = {name: first[name] for name in ("run", "train_seed", "sample_seed", "contract")}
        records += _measure([(row["prompt"], row["text"]) for row in group], judge, on, first["subject"], more)
        records += _distances(
            group, judge, with_mauve, {"on": on, "subject": first["subject"], "kind": "estimate", **more}
        )
        told = [(row["tokens"], _passes(row)) for row in group if "tokens" in row]
        if passes := sum(blocks for _, blocks in told):
            about: dict[str, Any] = {"on": on, "subject": first["subject"], "kind": "estimate", "n": len(told), **more}
            value = sum(tokens for tokens, _ in told) / passes
            records.append(record("tokens_per_forward", value, unit="tokens/pass", **about))
    real = dict.fromkeys((row["prompt"], row["real"]) for row in rows if row["real"])
    if real:
        more = {"contract": {"new": rows[0]["contract"].get("new")}}
        records += _measure(list(real), judge, on, "data", more)
        encode = _encoder(judge)
        halves = [[encode(text) for _, text in list(real)[side::2]] for side in (0, 1)]
        if all(halves):
            about = {"on": on, "subject": "data", "kind": "estimate", "n": len(real), **more}
            records += _ngram_distances(halves[0], halves[1], about)
    return records


def _distances(
    group: Sequence[dict[str, Any]], judge: LoadedRun | None, with_mauve: bool, about: dict[str, Any]
) -> list[dict[str, Any]]:
    """From what really followed the prompts, where that is known."""
    encode, told = _encoder(judge), [row for row in group if row["real"]]
    if not told:
        return []
    real: dict[str, tuple[list[int], list[list[int]]]] = {}
    for row in told:
        real.setdefault(row["prompt"] + "\0" + row["real"], (encode(row["real"]), []))[1].append(encode(row["text"]))
    texts, samples = [own for own, _ in real.values()], [text for _, drawn in real.values() for text in drawn]
    about = {**about, "n": len(samples)}
    records = _ngram_distances(texts, samples, about)
    if (got := brier(real)) is not None:
        over: dict[str, Any] = {**about, "n": got.prompts, "stderr_over": "prompts"}
        records += [
            record("brier_lm", value, stderr=got.errors[n], unit="score", ngram=n, **over)
            for n, value in got.scores.items()
        ]
        records.append(record("brier_lm", got.overall, stderr=got.overall_error, unit="percent", **over))
    if with_mauve and judge is not None:
        value = mauve(judge, texts, samples)
        records.append(record("mauve", value, unit="fraction", judge=judge.name, **about))
    return records


def _ngram_distances(
    real: Sequence[Sequence[int]], samples: Sequence[Sequence[int]], about: dict[str, Any]
) -> list[dict[str, Any]]:
    values = {n: ngram_kl(real, samples, n) for n in COMPARED}
    return [record("ngram_kl", v, unit="nats", ngram=n, **about) for n, v in values.items() if math.isfinite(v)]


def _passes(row: dict[str, Any]) -> int:
    """Network calls: a block each, or with drafts as many as the text took."""
    contract = row["contract"]
    return contract["nfe"] + contract.get("decoder_calls", 0) if "drafts" in row else len(row["blocks"])


def _measure(
    pairs: Sequence[tuple[str, str]], judge: LoadedRun | None, on: str, subject: str, more: dict[str, Any]
) -> list[dict[str, Any]]:
    encode = _encoder(judge)
    tokens = [encode(text) for _, text in pairs]
    common: dict[str, Any] = {"on": on, "subject": subject, "kind": "estimate", "n": len(pairs), **more}
    each: dict[str, list[float]] = {
        "entropy": [unigram_entropy(t) for t in tokens if t],
        "repetition": [repetition(t) for t in tokens if len(t) >= REPEATED],
    }
    records = []
    if judge is not None:
        nll, count = judge_nll(judge, [(encode(p), t) for (p, _), t in zip(pairs, tokens, strict=True)])
    if judge is not None and count.any():
        value, error = ratio_error(nll, count)
        records.append(
            record(
                "judge_nll", value, stderr=error, stderr_over="samples", unit="nats/token", judge=judge.name, **common
            )
        )
    for metric, values in each.items():
        if values:
            error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
            unit = "nats" if metric == "entropy" else "fraction"
            mean = float(np.mean(values))
            records.append(record(metric, mean, stderr=error, stderr_over="samples", unit=unit, **common))
    for n in NGRAMS:
        records.append(record("distinct_n", distinct(tokens, n), unit="fraction", ngram=n, **common))
    return records


@torch.no_grad()
def judge_nll(
    judge: LoadedRun, pairs: Sequence[tuple[list[int], list[int]]], batch: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """(prompt tokens, sample tokens) → nats and tokens of each sample, given its prompt. fp32."""
    start = start_token(judge.tokenizer)
    limit = getattr(judge.model.trunk.config, "max_position_embeddings", None) or 1 << 30
    sums, count = np.zeros(len(pairs)), np.zeros(len(pairs))
    for low in range(0, len(pairs), batch):
        part = pairs[low : low + batch]
        rows = [[start, *prompt, *text][-limit:] for prompt, text in part]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [start] * (longest - len(row)) for row in rows], device=judge.model.device)
        scored = torch.zeros(ids.shape, dtype=torch.bool)
        for i, ((_, text), row) in enumerate(zip(part, rows, strict=True)):
            scored[i, max(1, len(row) - len(text)) : len(row)] = True
        hidden, _ = judge.model.states(ids[:, :-1])
        chosen = scored[:, 1:].to(ids.device)
        context = judge.model.context(hidden[chosen])
        nll = row_nll([context.hidden], [context.unembedding], ids[:, 1:][chosen], context.bias)
        index = torch.nonzero(chosen)[:, 0].cpu().numpy() + low
        np.add.at(sums, index, nll.double().cpu().numpy())
        np.add.at(count, index, 1)
    return sums, count


def ratio_error(sums: np.ndarray, count: np.ndarray) -> tuple[float, float | None]:
    """Σ sums / Σ count and its standard error over samples (delta method); none of one sample."""
    mean = float(sums.sum() / count.sum())
    if len(sums) < 2:
        return mean, None
    return mean, float(np.std(sums - mean * count, ddof=1) * len(sums) ** 0.5 / count.sum())


def _encoder(judge: LoadedRun | None) -> Callable[[str], list[int]]:
    """The judge's tokens, or words without a judge."""
    if judge is not None:
        return lambda text: judge.tokenizer.encode(text, add_special_tokens=False)
    words: dict[str, int] = {}
    return lambda text: [words.setdefault(word, len(words)) for word in text.split()]
