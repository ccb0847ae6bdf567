"""What counting alone says of samples: how varied they are, and how near their law is to that of text.

n-gram KL   KL(real ‖ samples) of the n-grams, nats, the samples' law mixed with 1% of the uniform one over what occurs in either.
            It falls with the number of samples: the same between two halves of the real text stands beside it.
Brier-n     2 Q(y) − Σ_x Q(x)² of the next n tokens after a prompt, y the real ones: a proper score, at most 1. Two draws after
            one prompt estimate it without bias, no likelihood needed: 1{x = y} + 1{x' = y} − 1{x = x'}.
BrierLM     100 (Π Brier-n)^¼ over n = 1…4 (2510.27688, §4); of samples that miss all real 4-grams it is 0.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Tokens = Sequence[int]
MIXED = 0.01
"""Share of the uniform law in the samples'."""
BRIER = (1, 2, 3, 4)
REPEATED = 4
"""Length of the n-grams whose second and later occurrences count as repetition."""


def unigram_entropy(tokens: Sequence[int]) -> float:
    """Nats, of one sample's own tokens: repeated text has little."""
    p = np.unique(np.asarray(tokens), return_counts=True)[1] / len(tokens)
    return float(-(p * np.log(p)).sum())


def repetition(tokens: Sequence[int], n: int = REPEATED) -> float:
    """Share of a sample's n-grams that stood in it before."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams)


def distinct(samples: Sequence[Sequence[int]], n: int) -> float:
    """Distinct n-grams over n-grams, of all samples together. It falls with the number of samples."""
    grams = [tuple(tokens[i : i + n]) for tokens in samples for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / max(1, len(grams))


def ngrams(texts: Sequence[Tokens], n: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1))


def ngram_kl(real: Sequence[Tokens], samples: Sequence[Tokens], n: int) -> float:
    """Nats; infinite without any n-gram of the samples, zero without any real one."""
    p, q = ngrams(real, n), ngrams(samples, n)
    if not q:
        return float("inf") if p else 0.0
    known = list(p | q)
    counts = np.array([[p[gram], q[gram]] for gram in known], dtype=float).reshape(-1, 2)
    laws = counts / counts.sum(0).clip(min=1)
    mixed = (1 - MIXED) * laws[:, 1] + MIXED / len(known)
    at = laws[:, 0] > 0
    return float((laws[at, 0] * np.log(laws[at, 0] / mixed[at])).sum())


@dataclass(frozen=True)
class Brier:
    """scores: of one n-gram length each, then their geometric mean × 100. errors: standard errors over prompts; none of one
    prompt."""

    scores: Mapping[int, float]
    overall: float
    errors: Mapping[int, float | None]
    overall_error: float | None
    prompts: int


def brier(prompts: Mapping[str, tuple[Tokens, Sequence[Tokens]]]) -> Brier | None:
    """prompts: → (what really followed, samples of what follows). Those with less than two samples or four real tokens say
    nothing; None where none is left."""
    found = [
        [pair_score(real[:n], [tuple(text[:n]) for text in texts]) for n in BRIER]
        for real, texts in prompts.values()
        if len(texts) > 1 and len(real) >= BRIER[-1]
    ]
    if not found:
        return None
    each = np.array(found)
    mean, count = each.mean(0), len(each)
    errors: list[float | None] = [None] * len(BRIER)
    overall_error = None
    if count > 1:
        errors = list((each.std(0, ddof=1) / count**0.5).tolist())
        without = np.array([geometric(row) for row in (each.sum(0) - each) / (count - 1)])
        overall_error = float(((count - 1) / count * ((without - without.mean()) ** 2).sum()) ** 0.5)
    scores, told = dict(zip(BRIER, mean.tolist(), strict=True)), dict(zip(BRIER, errors, strict=True))
    return Brier(scores, geometric(mean), told, overall_error, count)


def pair_score(real: Tokens, samples: Sequence[tuple[int, ...]]) -> float:
    """2 Q(y) − Σ Q², over all pairs of two samples or more: of samples alone, without bias."""
    m, counts = len(samples), Counter(samples)
    same = sum(c * (c - 1) for c in counts.values()) / (m * (m - 1))
    return 2 * counts[tuple(real)] / m - same


def geometric(scores: np.ndarray) -> float:
    return float(100 * np.prod(np.clip(scores, 0, None)) ** (1 / len(scores)))
