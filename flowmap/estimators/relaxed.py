"""Estimators that differentiate f: at relaxed points, or at one-hot draws with a made-up Jacobian. All biased.

At one-hot draws f has to be extended to a neighbourhood, and the estimate depends on the extension: one
and the same function of the draws may be written as linear, as quadratic, or so that its slope is zero.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowmap.estimators.base import (
    Estimate,
    Function,
    argmax_onehot,
    check,
    draw,
    exponentials,
    gumbels,
    log_probs,
    softmax_vjp,
    value_and_slope,
)
from flowmap.rng import Rng


@dataclass(frozen=True)
class GumbelSoftmax:
    """y = softmax((l + G) / τ), gradient ∇f(y) ∂y/∂l (1611.01144, 1611.00712): the exact gradient of E[f(y)],
    which tends to E[f(D)] as τ → 0 while the variance grows. Evaluates f at y only."""

    tau: float = 1.0

    name = "gumbel-softmax"
    unbiased = False
    needs_gradient_of_f = True

    def estimate(self, logits: Tensor, f: Function, num_samples: int, rng: Rng) -> Estimate:
        check(logits, num_samples)
        y = (gumbels(rng, "gumbel", log_probs(logits), num_samples) / self.tau).softmax(-1)
        value, slope = value_and_slope(f, y)
        gradient = softmax_vjp(y, slope) / self.tau
        return Estimate(value.mean(0), gradient.mean(0), num_samples)


class OneHotDraw:
    """What the straight-through family shares: f is evaluated at one-hot draws, which carry a Jacobian of their own."""

    name: ClassVar[str]
    unbiased = False
    needs_gradient_of_f = True

    def draw(self, log_pi: Tensor, num: int, rng: Rng, at: str = "") -> Tensor:
        """One-hot draws D ~ π, (num, *batch, L, V), whose gradient in log π, (*batch, L, V), is the estimator's. Usable
        where f is more than one variable's, as in a chain whose later logits read earlier draws. at: part of the names
        of the random numbers, to tell such draws apart."""
        raise NotImplementedError

    def estimate(self, logits: Tensor, f: Function, num_samples: int, rng: Rng) -> Estimate:
        check(logits, num_samples)
        with torch.enable_grad():
            log_pi = log_probs(logits).requires_grad_()
            D = self.draw(log_pi, num_samples, rng)
        value, slope = value_and_slope(f, D)
        (gradient,) = torch.autograd.grad(D, log_pi, slope / num_samples)
        return Estimate(value.mean(0), gradient, num_samples)


@dataclass(frozen=True)
class StraightThrough(OneHotDraw):
    """∇f(D) at a draw, as if D were π: gradient ∇f(D) ∂π/∂l (1308.3432). Exact for linear f."""

    name = "straight-through"

    def draw(self, log_pi: Tensor, num: int, rng: Rng, at: str = "") -> Tensor:
        return _as_if(draw(rng, log_pi.detach(), num, at), log_pi.softmax(-1))


@dataclass(frozen=True)
class STGumbel(OneHotDraw):
    """∇f(D) at D = argmax(l + G), as if D were y = softmax((l + G) / τ) (1611.01144, straight-through form)."""

    tau: float = 1.0

    name = "st-gumbel"

    def draw(self, log_pi: Tensor, num: int, rng: Rng, at: str = "") -> Tensor:
        z = gumbels(rng, "gumbel" + at, log_pi.detach(), num)
        return _as_if(argmax_onehot(z), ((z + _step(log_pi)) / self.tau).softmax(-1))


@dataclass(frozen=True)
class GumbelRao(OneHotDraw):
    """ST-Gumbel, its Jacobian averaged over Gumbels given the draw (2010.04838): the same mean, no more
    variance, and no more evaluations of f. num_gumbels: Gumbels per draw, K in the paper."""

    tau: float = 1.0
    num_gumbels: int = 16

    name = "gumbel-rao"

    def draw(self, log_pi: Tensor, num: int, rng: Rng, at: str = "") -> Tensor:
        held = log_pi.detach()
        D = draw(rng, held, num, at)
        z = gumbels_given(D, held, exponentials(rng, "given-draw" + at, held, self.num_gumbels, num))
        return _as_if(D, ((z + _step(log_pi)) / self.tau).softmax(-1).mean(0))


def gumbels_given(D: Tensor, log_pi: Tensor, noise: Tensor) -> Tensor:
    """z = log π + G given argmax z = D, from Exp(1) noise E (2010.04838; 1703.07370):

        z_D = −log E_D,     z_i = −log(E_i / π_i + E_D).

    Differentiable in log_pi. All three broadcast, noise (..., L, V) being the largest; returns its shape."""
    top = (D * noise).sum(-1, keepdim=True)
    return -((noise * (-log_pi).exp()).where(D == 0, 0.0) + top).log()


@dataclass(frozen=True)
class ReinMax(OneHotDraw):
    """Second-order accurate straight-through (2304.08612, algorithm 2):

        π₀ = softmax(l),   D ~ π₀,   π₁ = (D + softmax(l / τ)) / 2,
        gradient = ∇f(D) (2 J(π₁) − ½ J(π₀)),     J(π) = diag(π) − ππᵀ.

    At τ = 1 exact for f linear or quadratic in each variable; τ > 1 biases even linear f."""

    tau: float = 1.0

    name = "reinmax"

    def draw(self, log_pi: Tensor, num: int, rng: Rng, at: str = "") -> Tensor:
        held = log_pi.detach()
        D = draw(rng, held, num, at)
        pi_1 = ((D + (held / self.tau).softmax(-1)) / 2).log() + _step(log_pi)
        return _as_if(D, 2 * pi_1.softmax(-1) - log_pi.softmax(-1) / 2)


def _step(log_pi: Tensor) -> Tensor:
    """Zero, with the gradient of log π: added to a value that is held, it moves as log π would move it."""
    return torch.nan_to_num(log_pi - log_pi.detach())  # a category masked by −∞ does not move


def _as_if(D: Tensor, y: Tensor) -> Tensor:
    """The value of D, with the gradient of y."""
    return D + (y - y.detach())
