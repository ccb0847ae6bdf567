"""What every estimator returns: nats of each sequence, what they are, and how sure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["exact", "bound", "estimate"]


@dataclass(frozen=True)
class Part:
    """Repeats, (R, B), of something whose mean over R counts. shared: sequences have noise or times in common, so that only the mean over
    them varies as its repeats do; else a sequence's repeats are independent of another's, or even times make them less alike than that."""

    repeats: Tensor
    shared: bool = False

    def error(self, weights: Tensor) -> float:
        """The variance of Σ weights · mean."""
        count = len(self.repeats)
        if self.shared:
            return float((self.repeats @ weights).var()) / count
        return float(self.repeats.var(0) @ weights.square()) / count


@dataclass(frozen=True)
class Score:
    """nats, tokens: (B,) float64, of each sequence, and how many of its tokens were scored. parts: independent of each
    other, by which the Monte Carlo error is known; weights: (B,), how often a sequence stands in the law that the mean is
    over, None: all alike. nfe: network calls a sequence. data: the error of the mean over texts in nats/token, where
    documents are known. fair: what the noise leaves without bias, nats or the probability exp(−nats)."""

    nats: Tensor
    tokens: Tensor
    kind: Kind
    parts: tuple[Part, ...]
    nfe: float
    details: dict[str, Any] = field(default_factory=dict)
    weights: Tensor | None = None
    data: float | None = None
    fair: Literal["nats", "probability"] = "nats"

    @classmethod
    def of(cls, parts: Mapping[str, Part | Tensor], tokens: Tensor, kind: Kind, nfe: float, **details: Any) -> "Score":
        """Of means over repeats, (R, B); what each adds is told in details, in nats/token."""
        named = {name: part if isinstance(part, Part) else Part(part) for name, part in parts.items()}
        means = {name: part.repeats.mean(0) for name, part in named.items()}
        shares = {name: float(mean.sum() / tokens.sum()) for name, mean in means.items()} if len(parts) > 1 else {}
        nats = torch.stack(list(means.values())).sum(0)
        return cls(nats, tokens, kind, tuple(named.values()), nfe, {**shares, **details})

    @property
    def value(self) -> float:
        """nats/token."""
        weights = self._weights
        return float((weights * self.nats).sum() / (weights * self.tokens).sum())

    @property
    def monte_carlo(self) -> float:
        """The standard error of value given the texts, nats/token."""
        weights = self._weights
        return sum(part.error(weights) for part in self.parts) ** 0.5 / float((weights * self.tokens).sum())

    def under(self, weights: Tensor) -> "Score":
        """The mean under another law of the same sequences."""
        return replace(self, weights=weights.double())

    @property
    def _weights(self) -> Tensor:
        return torch.ones_like(self.nats) if self.weights is None else self.weights


def total_probability(score: Score) -> tuple[float, float]:
    """Σ exp(−nats) and its standard error, where sequences are different strings. Where nats are without bias, the mean of
    exp(−nats) over noise is too large by a factor exp(half its variance), exactly so of Gaussian noise, and that is taken off."""
    mass = (-score.nats).exp()
    variance = sum((part.repeats.var(0) / len(part.repeats) for part in score.parts), torch.zeros_like(mass))
    total = mass if score.fair == "probability" else mass * (-variance / 2).exp()
    return float(total.sum()), sum(part.error(mass) for part in score.parts) ** 0.5
