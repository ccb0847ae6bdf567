"""Gradients of expectations over categorical draws: ∇_l E_{D ~ softmax(l)}[f(D)], one interface for all.

    estimate = RLOO().estimate(logits, f, num_samples=8, rng=rng)
    estimate.surrogate(logits).backward()

logits: (*batch, L, V), f: (n, *batch, L, V) one-hot or relaxed → (n, *batch); see `base`. Needs torch and
`flowmap.rng` only. `Relax` takes its control variate as an argument; all others have defaults for theirs.
"""

from typing import Any

from flowmap.estimators.antithetic import ARMS, DisARM, StickARMS
from flowmap.estimators.base import Estimate, Estimator
from flowmap.estimators.control import ControlNetwork, Rebar, Relax
from flowmap.estimators.exact import Exact
from flowmap.estimators.relaxed import GumbelRao, GumbelSoftmax, ReinMax, STGumbel, StraightThrough
from flowmap.estimators.score import RLOO, Reinforce

ESTIMATORS: dict[str, type[Any]] = {
    kind.name: kind
    for kind in (
        Exact,
        GumbelSoftmax,
        StraightThrough,
        STGumbel,
        GumbelRao,
        ReinMax,
        Reinforce,
        RLOO,
        Rebar,
        Relax,
        DisARM,
        ARMS,
        StickARMS,
    )
}
"""Classes by name."""

__all__ = [
    "ARMS",
    "ESTIMATORS",
    "RLOO",
    "ControlNetwork",
    "DisARM",
    "Estimate",
    "Estimator",
    "Exact",
    "GumbelRao",
    "GumbelSoftmax",
    "Rebar",
    "ReinMax",
    "Reinforce",
    "Relax",
    "STGumbel",
    "StickARMS",
    "StraightThrough",
]
