"""What every estimator of ∇_l E_{D ~ softmax(l)}[f(D)] shares: its signature, its result, its draws.

Shapes, in all files of this package:

    n      draws of each batch element           *batch  any leading dimensions, none included
    L      variables of one batch element        V       categories of a variable
    l      logits, (*batch, L, V): L independent categorical variables, π = softmax(l)
    D      one-hot draws, (n, *batch, L, V)
    f      (n, *batch, L, V) → (n, *batch): one value per draw, of that draw alone

The gradient meant is that of Σ_batch E[f] with respect to l, (*batch, L, V).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from flowmap.rng import Rng

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Estimate:
    """value: (*batch), the mean of f over the points it was evaluated at (one-hot draws, or relaxed ones where
    an estimator evaluates nothing else). It keeps the graph to whatever f itself depends on.
    gradient: (*batch, L, V), with respect to the logits through the draws; detached.
    num_evaluations: of f, per batch element."""

    value: Tensor
    gradient: Tensor
    num_evaluations: int

    def surrogate(self, logits: Tensor) -> Tensor:
        """A scalar to call backward on: it equals value.sum(), and its gradient with respect to `logits` is
        `gradient`. Parameters of f receive the gradient of value, a plain Monte-Carlo average; so do the
        logits where f depends on them directly as well, as log π(D) in a variational bound does."""
        step = torch.nan_to_num(logits - logits.detach())  # zero, also where a category is masked by −∞
        return self.value.sum() + (step * self.gradient).sum()


class Estimator(Protocol):
    """unbiased: E[gradient] is the exact gradient for every f.
    needs_gradient_of_f: f is differentiated, and has to be defined around (or between) the one-hot points."""

    @property
    def name(self) -> str: ...

    @property
    def unbiased(self) -> bool: ...

    @property
    def needs_gradient_of_f(self) -> bool: ...

    def estimate(self, logits: Tensor, f: Function, num_samples: int, rng: Rng) -> Estimate:
        """logits: (*batch, L, V). num_samples: n draws of each batch element. An rng of a slice of samples
        has logits (slice, ..., L, V). Raises ValueError for shapes, or an n, that do not fit."""
        ...


def check(logits: Tensor, num_samples: int, at_least: int = 1) -> None:
    if logits.ndim < 2 or not logits.is_floating_point():
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} and type {logits.dtype} are not floats (*batch, variables, "
            "categories); a single variable's are logits[None]"
        )
    if num_samples < at_least:
        raise ValueError(f"num_samples = {num_samples}, and this estimator needs at least {at_least}")


def evaluate(f: Function, x: Tensor) -> Tensor:
    """f at x, (n, *batch, L, V). Returns (n, *batch)."""
    values = f(x)
    if values.shape != x.shape[:-2]:
        raise ValueError(
            f"f returned shape {tuple(values.shape)} for draws of shape {tuple(x.shape)}; one value per draw and "
            f"batch element is {tuple(x.shape[:-2])}"
        )
    return values


def value_and_slope(f: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """f and ∂f/∂x at x, (n, *batch, L, V). Returns (n, *batch) and x's shape."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        values = evaluate(f, x)
        # the graph is kept for Estimate.value, which f's own parameters are trained through
        slope = (
            torch.autograd.grad(values.sum(), x, retain_graph=True, allow_unused=True)[0]
            if values.requires_grad
            else None
        )
    if slope is None:
        raise ValueError("f carries no gradient to its draws; use an estimator with needs_gradient_of_f = False")
    return values, slope


def exponentials(rng: Rng, name: str, logits: Tensor, *lead: int) -> Tensor:
    """Exp(1) draws of shape (*lead, *logits.shape). The batch is drawn first, so that a slice of a global
    batch sees its own numbers; from float64, where no uniform number is rounded to 0 or 1."""
    *batch, L, V = logits.shape
    u = rng.uniform(name, *batch, *lead, L, V, dtype=torch.float64).add_(2.0**-33)
    return u.log_().neg_().to(logits).permute(*range(len(batch), u.ndim - 2), *range(len(batch)), -2, -1)


def gumbels(rng: Rng, name: str, log_pi: Tensor, num: int) -> Tensor:
    """z = log π + G, G ~ Gumbel(0, 1): (num, *batch, L, V), whose argmax is a draw from π."""
    return log_pi - exponentials(rng, name, log_pi, num).log()


def argmax_onehot(z: Tensor) -> Tensor:
    return F.one_hot(z.argmax(-1), z.shape[-1]).to(z)


def draw(rng: Rng, log_pi: Tensor, num: int, at: str = "") -> Tensor:
    """D ~ π, one-hot: (num, *batch, L, V). at: part of the random numbers' name."""
    return argmax_onehot(gumbels(rng, "gumbel" + at, log_pi, num))


def log_probs(logits: Tensor) -> Tensor:
    """log π, cut from the logits' graph: an estimate is made of values, Estimate.surrogate ties it to logits."""
    return logits.detach().log_softmax(-1)


def softmax_vjp(pi: Tensor, slope: Tensor) -> Tensor:
    """(diag(π) − ππᵀ) slope: softmax's symmetric Jacobian at π, times a slope."""
    weighted = pi * slope
    return weighted - pi * weighted.sum(-1, keepdim=True)
