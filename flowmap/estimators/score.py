"""Score-function estimators: f(D) ∇log π(D), where ∇_l log π(D) = D − π. f may be anything, and is not differentiated."""

from dataclasses import dataclass

from torch import Tensor

from flowmap.estimators.base import Estimate, Function, check, draw, evaluate, log_probs
from flowmap.rng import Rng


@dataclass(frozen=True)
class Reinforce:
    """(f(D) − b)(D − π) with a constant baseline b (Williams 1992, Machine Learning 8)."""

    baseline: float = 0.0

    name = "reinforce"
    unbiased = True
    needs_gradient_of_f = False

    def estimate(self, logits: Tensor, f: Function, num_samples: int, rng: Rng) -> Estimate:
        check(logits, num_samples)
        log_pi = log_probs(logits)
        D = draw(rng, log_pi, num_samples)
        value = evaluate(f, D)
        gradient = (value.detach() - self.baseline)[..., None, None] * (D - log_pi.exp())
        return Estimate(value.mean(0), gradient.mean(0), num_samples)


@dataclass(frozen=True)
class RLOO:
    """REINFORCE, each draw's baseline the mean of f over the n − 1 others (Kool et al. 2019, "Buy 4
    REINFORCE samples, get a baseline for free"):

        1/(n−1) Σ_i (f(D_i) − f̄)(D_i − π),     f̄ = 1/n Σ_j f(D_j).
    """

    name = "rloo"
    unbiased = True
    needs_gradient_of_f = False

    def estimate(self, logits: Tensor, f: Function, num_samples: int, rng: Rng) -> Estimate:
        check(logits, num_samples, at_least=2)
        log_pi = log_probs(logits)
        D = draw(rng, log_pi, num_samples)
        value = evaluate(f, D)
        centred = (value - value.mean(0)).detach()
        gradient = centred[..., None, None] * (D - log_pi.exp())
        return Estimate(value.mean(0), gradient.sum(0) / (num_samples - 1), num_samples)
