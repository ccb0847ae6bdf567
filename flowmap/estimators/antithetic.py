"""REINFORCE over antithetic draws: DisARM (2006.10680), ARMS (2105.14141), and sticks for any V (2106.08056).

A variable of V categories is V − 1 binary sticks: stick k stops the walk at category k with p_k = π_k / Σ_{j≥k} π_j,
and a binary variable is a single stick. b_i, i = 1..n, are the n draws of one stick, exchangeable, with pairwise
correlation ρ ≤ 0 from a Dirichlet copula; sticks are independent of each other. ARMS in the sticks'
logits α is

    1/(n−1) Σ_i (f_i − f̄)(b_i − p)/(1 − ρ)  =  1/(n(n−1)) Σ_{i≠j} (f_i − f_j)(b_i − p)/(1 − ρ),

unbiased since E[(b_i − b_j)²] = 2p(1−p)(1−ρ); ρ = 0 gives RLOO, n = 2 gives DisARM. A walk that stopped before
stick k does not use b_jk, which is then averaged out, E[b_j | b_i] = p + ρ(b_i − p): with a_i = 1 where walk i
reached the stick, the pair's weight a_i a_j/(1 − ρ) + a_i (1 − a_j) takes the place of 1/(1 − ρ).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmap.estimators.base import Estimate, Function, check, evaluate, exponentials, log_probs
from flowmap.rng import Rng


@dataclass(frozen=True)
class DisARM:
    """Antithetic pairs of binary draws (2006.10680): num_samples / 2 independent pairs. V = 2 only."""

    name = "disarm"
    unbiased = True
    needs_gradient_of_f = False

    def estimate(self, logits: Tensor, f: Function, num_samples: int, rng: Rng) -> Estimate:
        check(logits, num_samples, at_least=2)
        _check_binary(logits, "DisARM")
        if num_samples % 2:
            raise ValueError(f"DisARM draws pairs: num_samples = {num_samples} has to be even")
        return _estimate(logits, f, num_samples // 2, 2, rng)


@dataclass(frozen=True)
class ARMS:
    """All num_samples draws of a binary variable mutually antithetic (2105.14141). V = 2 only."""

    name = "arms"
    unbiased = True
    needs_gradient_of_f = False

    def estimate(self, logits: Tensor, f: Function, num_samples: int, rng: Rng) -> Estimate:
        check(logits, num_samples, at_least=2)
        _check_binary(logits, "ARMS")
        return _estimate(logits, f, 1, num_samples, rng)


@dataclass(frozen=True)
class StickARMS:
    """ARMS on the sticks of variables of any V; at V = 2 it is ARMS. With n = 2 it is of the kind of 2106.08056."""

    name = "stick-arms"
    unbiased = True
    needs_gradient_of_f = False

    def estimate(self, logits: Tensor, f: Function, num_samples: int, rng: Rng) -> Estimate:
        check(logits, num_samples, at_least=2)
        return _estimate(logits, f, 1, num_samples, rng)


def _check_binary(logits: Tensor, name: str) -> None:
    if logits.shape[-1] != 2:
        raise ValueError(f"{name} is for binary variables, not {logits.shape[-1]} categories; StickARMS is for any")


def _estimate(logits: Tensor, f: Function, groups: int, n: int, rng: Rng) -> Estimate:
    """The mean of `groups` independent estimates from n antithetic draws each."""
    pi = log_probs(logits).exp()
    tail = pi.flip(-1).cumsum(-1).flip(-1).clamp_min(torch.finfo(pi.dtype).tiny)  # Σ_{j≥k} π_j
    stop, go = pi[..., :-1] / tail[..., :-1], tail[..., 1:] / tail[..., :-1]  # p and 1 − p, neither by subtraction
    b = dirichlet_copula(rng, stop, go, groups, n)
    ones = torch.ones_like(b[..., :1])
    reach = torch.cat([ones, (1 - b).cumprod(-1)], -1)
    D = reach * torch.cat([b, ones], -1)
    value = evaluate(f, D.flatten(0, 1)).unflatten(0, (n, groups))

    f_ = (value - value.mean(0)).detach()[..., None, None]
    a = reach[..., :-1]
    pairs = n * f_ + (debias(stop, go, n) - 1) * (f_ * a.sum(0) - (a * f_).sum(0))
    stick = (a * (b - stop) * pairs).sum(0).mean(0) / (n * (n - 1))

    # α_k = l_k − log Σ_{j>k} exp l_j, hence ∂α_k/∂l_j = [j = k] − [j > k] π_j / tail_{k+1}
    earlier = (stick / tail[..., 1:]).cumsum(-1)
    gradient = torch.cat([stick, torch.zeros_like(stick[..., :1])], -1)
    gradient[..., 1:] -= pi[..., 1:] * earlier
    return Estimate(value.mean((0, 1)), gradient, groups * n)


def dirichlet_copula(rng: Rng, p: Tensor, not_p: Tensor, groups: int, n: int) -> Tensor:
    """Draws of Bernoulli(p), (n, groups, *p.shape), antithetic along n: d ~ Dirichlet(1, ..., 1) has uniform
    (1 − d_i)^(n−1), and the rarer outcome, of probability q, is where that is below q. Two of them then coincide
    with probability max(0, 2 q^{1/(n−1)} − 1)^(n−1), and never for q ≤ 2^{1−n}, the least any coupling can do."""
    noise = exponentials(rng, "copula", p, n, groups)
    d = noise / noise.sum(0)
    rare = d > -torch.expm1(torch.minimum(p, not_p).log() / (n - 1))
    return torch.where(p <= not_p, rare, ~rare).to(p)


def debias(p: Tensor, not_p: Tensor, n: int) -> Tensor:
    """1/(1 − ρ) = (1 − q) / (1 − P(both rare)/q) of that copula; max(p, 1 − p) at n = 2, as in DisARM."""
    q = torch.minimum(p, not_p)
    both = (2 - (-q.log() / (n - 1)).exp()).clamp_min(0) ** (n - 1)
    return torch.maximum(p, not_p) / (1 - both)
