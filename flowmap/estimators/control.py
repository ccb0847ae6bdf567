"""REBAR (1703.07370) and RELAX (1711.00123): REINFORCE less a control variate c(z) of the relaxed draw.

z = log π + G, D = argmax z, and z̃ a second relaxed draw from the law of z given D:

    ĝ = (f(D) − c(z̃)) ∇log π(D) + ∇_l c(z) − ∇_l c(z̃),

unbiased for any c that is continuous and almost everywhere differentiable (a step in c is missed without a word). As
in REBAR, the noise behind z̃ is the one that makes z̃ = z. It is independent of D, as fresh noise would be, so the
expectation stays while the terms cancel better. The two last ones are then one slope of c
along two paths, ∂z_i/∂log π_i = 1 and, from `gumbels_given`, ∂z̃_i/∂log π_i = 1 − exp(z_i − max z):

    ĝ = (f(D) − c(z)) (D − π) + (I − π1ᵀ)(∇c(z) ⊙ exp(z − max z)).

One evaluation of f at D, one of c at z. The control variate's parameters φ descend E‖ĝ‖², the variance up to
the constant ‖E ĝ‖².
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowmap.estimators.base import (
    Estimate,
    Function,
    argmax_onehot,
    check,
    evaluate,
    gumbels,
    log_probs,
)
from flowmap.rng import Rng


class ControlVariate(nn.Module):
    """ĝ for a c that a subclass gives. The estimate takes c as it stands; `fit` or `variance_loss` trains it."""

    name: str
    unbiased = True

    @property
    def needs_gradient_of_f(self) -> bool:
        raise NotImplementedError

    def control(self, z: Tensor, f: Function) -> Tensor:
        """c(z): (n, *batch, L, V) → (n, *batch), differentiable."""
        raise NotImplementedError

    def estimate(self, logits: Tensor, f: Function, num_samples: int, rng: Rng) -> Estimate:
        check(logits, num_samples)
        value, gradient = self._draws(logits, f, num_samples, rng, "gumbel", create_graph=False)
        evaluations = num_samples * (2 if self.needs_gradient_of_f else 1)
        return Estimate(value.mean(0), gradient.detach().mean(0), evaluations)

    def variance_loss(self, logits: Tensor, f: Function, num_samples: int, rng: Rng, name: str = "fit") -> Tensor:
        """E‖ĝ‖² of one draw, a scalar (mean over draws and batch) differentiable in this module's parameters
        (1711.00123). It reaches f's parameters too: differentiate it by `self.parameters()` only.
        name: of the random draws, to be other ones than the estimate's."""
        check(logits, num_samples)
        _, gradient = self._draws(logits, f, num_samples, rng, name, create_graph=True)
        return gradient.square().sum((-2, -1)).mean()

    def fit(
        self, logits: Tensor, f: Function, num_samples: int, rng: Rng, steps: int = 200, learning_rate: float = 0.01
    ) -> None:
        """`steps` of Adam on `variance_loss`, for logits and an f that stay. In training, take one a step."""
        parameters = list(self.parameters())
        optimizer = torch.optim.Adam(parameters, lr=learning_rate)
        for step in range(steps):
            loss = self.variance_loss(logits, f, num_samples, rng, name=f"fit/{step}")
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            optimizer.step()
        optimizer.zero_grad()

    def _draws(
        self, logits: Tensor, f: Function, n: int, rng: Rng, name: str, create_graph: bool
    ) -> tuple[Tensor, Tensor]:
        """f(D), (n, *batch), and ĝ of each draw, (n, *batch, L, V)."""
        log_pi = log_probs(logits)
        pi = log_pi.exp()
        z = gumbels(rng, name, log_pi, n)
        D = argmax_onehot(z)
        value = evaluate(f, D)
        with torch.enable_grad():
            z.requires_grad_()
            c = self.control(z, f)
            (slope,) = torch.autograd.grad(c.sum(), z, create_graph=create_graph)
            path = slope * (z - z.amax(-1, keepdim=True)).exp().detach()
            path = path - pi * path.sum(-1, keepdim=True)
            return value, (value.detach() - c)[..., None, None] * (D - pi) + path


class Rebar(ControlVariate):
    """c(z) = η f(softmax(z / τ)); η and τ > 0 are parameters. f has to take relaxed draws."""

    name = "rebar"
    needs_gradient_of_f = True

    def __init__(self, eta: float = 1.0, tau: float = 0.5) -> None:
        super().__init__()
        self.eta = nn.Parameter(torch.tensor(float(eta)))
        self.log_tau = nn.Parameter(torch.tensor(math.log(tau)))

    def control(self, z: Tensor, f: Function) -> Tensor:
        values = evaluate(f, (z / self.log_tau.exp()).softmax(-1))
        if not values.requires_grad:
            raise ValueError(
                "f carries no gradient to its draws; use Relax without rebar, or a score-function estimator"
            )
        return self.eta * values


class Relax(ControlVariate):
    """c(z) = r(z), or r(z) + η f(softmax(z / τ)) where a `rebar` is given (1711.00123).

    r: any differentiable function (n, *batch, L, V) → (n, *batch); a module's parameters are trained with it,
    such as `ControlNetwork`'s. Without `rebar` f is a black box."""

    name = "relax"

    def __init__(self, r: Callable[[Tensor], Tensor], rebar: Rebar | None = None) -> None:
        super().__init__()
        self.r, self.rebar = r, rebar

    @property
    def needs_gradient_of_f(self) -> bool:
        return self.rebar is not None

    def control(self, z: Tensor, f: Function) -> Tensor:
        c = evaluate(self.r, z)
        return c if self.rebar is None else c + self.rebar.control(z, f)


class ControlNetwork(nn.Module):
    """A two-layer network of y = softmax(z) over all L variables; zero before it is trained.
    rng: for the weights, one without samples."""

    def __init__(self, num_variables: int, num_categories: int, rng: Rng, hidden: int = 32) -> None:
        super().__init__()
        size = num_variables * num_categories
        self.inner = nn.Parameter(rng.normal("control/inner", size, hidden) / math.sqrt(num_variables))
        self.offset = nn.Parameter(torch.zeros(hidden))
        self.outer = nn.Parameter(torch.zeros(hidden))

    def forward(self, z: Tensor) -> Tensor:
        """z: (n, *batch, L, V). Returns (n, *batch)."""
        y = z.softmax(-1).flatten(-2).to(self.inner)
        return (torch.tanh(y @ self.inner + self.offset) @ self.outer).to(z)
