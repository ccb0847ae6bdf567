"""The universal certificate: a score is a negative log-probability only if Σ exp(−score) ≤ 1 over *all* of V^L,
invalid strings included. A scorer whose network has seen the answer breaks it, however good its mean looks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np

from flowlm.likelihood.score import Score, total_probability
from training.data.store import TokenStore


@dataclass(frozen=True)
class Certificate:
    """total: Σ exp(−score) over every string; stderr: its Monte Carlo error, 0 for an exact scorer."""

    total: float
    stderr: float

    @property
    def holds(self) -> bool:
        return self.total <= 1 + 3 * self.stderr + 1e-4

    @property
    def exact(self) -> bool:
        """A law that leaves no mass out."""
        return abs(self.total - 1) <= 3 * self.stderr + 1e-4


def every_string(vocab_size: int, length: int, start: int) -> TokenStore:
    """All V^L strings as documents, each behind the token that begins a document. Scored in windows of
    length + 1 tokens, each stands alone."""
    strings = np.array(list(product(range(vocab_size), repeat=length)), dtype=np.uint16)
    tokens = np.concatenate([np.full((len(strings), 1), start, np.uint16), strings], 1)
    return TokenStore(tokens.reshape(-1), np.arange(len(strings) + 1) * (length + 1), 0)


def certify(score: Callable[[TokenStore], np.ndarray], vocab_size: int, length: int, start: int = 0) -> Certificate:
    """score: store → nats of each document, (documents,) or (repeats, documents) with independent noise."""
    nats = np.atleast_2d(score(every_string(vocab_size, length, start)))
    totals = np.exp(-nats).sum(1)
    error = totals.std(ddof=1) / len(totals) ** 0.5 if len(totals) > 1 else 0.0
    return Certificate(float(totals.mean()), float(error))


def of_score(score: Score) -> Certificate:
    """Of a score of every string there is."""
    return Certificate(*total_probability(score))
