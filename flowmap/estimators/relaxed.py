"""Estimators that differentiate f: at relaxed points, or at one-hot draws with a made-up Jacobian. All biased.

At one-hot draws f has to be extended to a neighbourhood, and the estimate depends on the extension: one
and the same function of the draws may be written as linear, as quadratic, or so that its slope is zero.
"""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class StraightThrough:
    """∇f(D) at a draw, as if D were π: gradient ∇f(D) ∂π/∂l (1308.3432). Exact for linear f."""

    name = "straight-through"
    unbiased = False
    needs_gradient_of_f = True

    def estimate(self, logits: Tensor, f: Function, num_samples: int, rng: Rng) -> Estimate:
        check(logits, num_samples)
        log_pi = log_probs(logits)
        value, slope = value_and_slope(f, draw(rng, log_pi, num_samples))
        gradient = softmax_vjp(log_pi.exp(), slope)
        return Estimate(value.mean(0), gradient.mean(0), num_samples)


@dataclass(frozen=True)
class STGumbel:
    """∇f(D) at D = argmax(l + G), as if D were y = softmax((l + G) / τ) (1611.01144, straight-through form)."""

    tau: float = 1.0

    name = "st-gumbel"
    unbiased = False
    needs_gradient_of_f = True

    def estimate(self, logits: Tensor, f: Function, num_samples: int, rng: Rng) -> Estimate:
        check(logits, num_samples)
        z = gumbels(rng, "gumbel", log_probs(logits), num_samples)
        value, slope = value_and_slope(f, argmax_onehot(z))
        gradient = softmax_vjp((z / self.tau).softmax(-1), slope) / self.tau
        return Estimate(value.mean(0), gradient.mean(0), num_samples)


@dataclass(frozen=True)
class GumbelRao:
    """ST-Gumbel, its Jacobian averaged over Gumbels given the draw (2010.04838): the same mean, no more
    variance, and no more evaluations of f. num_gumbels: Gumbels per draw, K in the paper."""

    tau: float = 1.0
    num_gumbels: int = 16

    name = "gumbel-rao"
    unbiased = False
    needs_gradient_of_f = True

    def estimate(self, logits: Tensor, f: Function, num_samples: int, rng: Rng) -> Estimate:
        check(logits, num_samples)
        log_pi = log_probs(logits)
        D = draw(rng, log_pi, num_samples)
        value, slope = value_and_slope(f, D)
        noise = exponentials(rng, "given-draw", log_pi, self.num_gumbels, num_samples)
        y = (gumbels_given(D, log_pi, noise) / self.tau).softmax(-1)
        gradient = softmax_vjp(y, slope) / self.tau
        return Estimate(value.mean(0), gradient.mean((0, 1)), num_samples)


def gumbels_given(D: Tensor, log_pi: Tensor, noise: Tensor) -> Tensor:
    """z = log π + G given argmax z = D, from Exp(1) noise E (2010.04838; 1703.07370):

        z_D = −log E_D,     z_i = −log(E_i / π_i + E_D).

    Differentiable in log_pi. All three broadcast, noise (..., L, V) being the largest; returns its shape."""
    top = (D * noise).sum(-1, keepdim=True)
    return -((noise * (-log_pi).exp()).where(D == 0, 0.0) + top).log()


@dataclass(frozen=True)
class ReinMax:
    """Second-order accurate straight-through (2304.08612, algorithm 2):

        π₀ = softmax(l),   D ~ π₀,   π₁ = (D + softmax(l / τ)) / 2,
        gradient = ∇f(D) (2 J(π₁) − ½ J(π₀)),     J(π) = diag(π) − ππᵀ.

    At τ = 1 exact for f linear or quadratic in each variable; τ > 1 biases even linear f."""

    tau: float = 1.0

    name = "reinmax"
    unbiased = False
    needs_gradient_of_f = True

    def estimate(self, logits: Tensor, f: Function, num_samples: int, rng: Rng) -> Estimate:
        check(logits, num_samples)
        log_pi = log_probs(logits)
        D = draw(rng, log_pi, num_samples)
        value, slope = value_and_slope(f, D)
        pi_1 = (D + (log_pi / self.tau).softmax(-1)) / 2
        gradient = 2 * softmax_vjp(pi_1, slope) - softmax_vjp(log_pi.exp(), slope) / 2
        return Estimate(value.mean(0), gradient.mean(0), num_samples)
