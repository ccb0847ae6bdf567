"""How good an acceptance estimate is: calibration, Brier score, and how well it tells what is kept from what falls.

Scored against the rule's exact chance on the drafts of `eval.calibration`, each with the chance that the rule comes to
it as its weight; errors by a bootstrap over prompts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from eval.calibration import Drafts, Numbers
from mtp.decoding.confidence import FEATURES, Confidence

BINS, RESAMPLES = 15, 200


@dataclass(frozen=True)
class Scored:
    """estimate, chance, weight: (E,) of every example that counts; position: (E,), 2..K; prompt: (E,)."""

    estimate: Numbers
    chance: Numbers
    weight: Numbers
    position: np.ndarray
    prompt: np.ndarray

    def error(self, statistic: Callable[[Numbers], float], seed: int = 0) -> float | None:
        """The standard error of statistic(weight) when prompts are drawn anew, over the draws it is defined of."""
        names, which = np.unique(self.prompt, return_inverse=True)
        if len(names) < 2:
            return None
        counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
        made = np.array([statistic(self.weight * count[which]) for count in counts])
        made = made[np.isfinite(made)]
        return float(np.std(made, ddof=1)) if len(made) > 1 else None

    def reliability(self, weight: Numbers, bins: int = BINS) -> Numbers:
        """(bins, 3): mean estimate, mean chance and share of the weight, bins of equal mass in order of the estimate."""
        order = np.argsort(self.estimate, kind="stable")
        mass = weight[order].cumsum() - weight[order] / 2
        which = np.minimum((mass / weight.sum() * bins).astype(int), bins - 1)
        columns = (weight * self.estimate, weight * self.chance, weight)
        sums = np.stack([np.bincount(which, column[order], minlength=bins) for column in columns], 1)
        held = np.maximum(sums[:, 2:], np.finfo(float).tiny)
        return np.concatenate([sums[:, :2] / held, sums[:, 2:] / weight.sum()], 1)

    def calibration_error(self, weight: Numbers) -> float:
        """Mean distance of estimate and chance over the bins, by their mass (ECE)."""
        table = self.reliability(weight)
        return float((np.abs(table[:, 0] - table[:, 1]) * table[:, 2]).sum())

    def brier(self, weight: Numbers) -> float:
        """Mean squared distance to the exact chance: 0 for the chance itself."""
        return float((weight * (self.estimate - self.chance) ** 2).sum() / weight.sum())

    def auroc(self, weight: Numbers) -> float:
        """That a kept token has a higher estimate than one that falls, over the rule's coins; NaN where all are alike."""
        from sklearn.metrics import roc_auc_score

        kept = np.repeat([1, 0], len(self.chance))
        share = np.concatenate([weight * self.chance, weight * (1 - self.chance)])
        if not (share[kept == 1].any() and share[kept == 0].any()):
            return float("nan")
        return float(roc_auc_score(kept, np.tile(self.estimate, 2), sample_weight=share))

    def acceptance(self, weight: Numbers, position: int) -> float:
        """Mean chance at a position, given that the rule came so far; NaN where it never did."""
        weight = weight * (self.position == position)
        return float((weight * self.chance).sum() / weight.sum()) if weight.any() else float("nan")


def score(confidence: Confidence, drafts: Drafts) -> dict[str, Scored]:
    """Of each estimate: "raw", the head's own probability of the token drawn, not fitted; "before" and "after";
    and "exact", the chance itself, which no estimate tells kept from fallen better than."""
    x = torch.tensor(drafts.x).float()
    estimates = {
        "raw": (np.exp(drafts.x[..., FEATURES.index("log_drawn")]), drafts.after),
        "before": (confidence.before(x[..., :-1]).numpy().astype(np.float64), drafts.before),
        "after": (confidence.after(x).numpy().astype(np.float64), drafts.after),
        "exact": (drafts.after, drafts.after),
    }
    counted = drafts.weight > 0
    position = np.broadcast_to(np.arange(2, drafts.weight.shape[1] + 2), counted.shape)[counted]
    prompt = np.broadcast_to(drafts.prompt[:, None], counted.shape)[counted]
    return {
        name: Scored(estimate[counted], chance[counted], drafts.weight[counted], position, prompt)
        for name, (estimate, chance) in estimates.items()
    }
