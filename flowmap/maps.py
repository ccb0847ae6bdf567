"""The two-time map: a network with its preconditioning, v_θ(x_t, t, s | c) and what follows from it.

    v_θ(x_t, t, s) = a(t)·x_t + b(t)·G_θ(c_in(t)·x_t; t, s)          x_s = X_{t→s}(x_t), the identity at s = t

A parameterisation is the two functions a, b; neither depends on s (objectives.md). With data of
deviation σ_d and noise of deviation ν, c_in brings x_t to unit variance, and simple-EDM makes G's
regression target unit variance too. With ν = σ_d on the linear path these are the formulas of IMM
(2503.07565): Euler-FM, simple-EDM.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowmap.path import LinearPath, Path, expand

Coefficients = Callable[[Tensor, Tensor, float, float], tuple[Tensor, Tensor]]
"""(α_t, σ_t, σ_d, ν) → (a, b)."""


def euler_fm(alpha: Tensor, sigma: Tensor, data: float, noise: float) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(alpha), torch.full_like(alpha, data)


def simple_edm(alpha: Tensor, sigma: Tensor, data: float, noise: float) -> tuple[Tensor, Tensor]:
    """The best linear guess of v from x_t, and the deviation of what it leaves."""
    variance = alpha**2 * data**2 + sigma**2 * noise**2
    return (sigma * noise**2 - alpha * data**2) / variance, (alpha + sigma) * data * noise / variance.sqrt()


def endpoint(alpha: Tensor, sigma: Tensor, data: float, noise: float) -> tuple[Tensor, Tensor]:
    """G is the data's end g itself; σ is clipped, since v has a pole there."""
    sigma = sigma.clamp_min(0.05)
    return 1 / sigma, -(alpha + sigma) / sigma


Parameterisation = Literal["euler-fm", "simple-edm", "endpoint"]
PARAMETERISATIONS: dict[str, Coefficients] = {"euler-fm": euler_fm, "simple-edm": simple_edm, "endpoint": endpoint}


class FlowMap(nn.Module):
    """network: (c_in·x_t, t, s, context=, self_cond=) → G, the shape of x_t (logits, with a codebook).

    t, s: (batch,) or (batch, position), s ≤ t. context: whatever the network takes. With a codebook the states
    are tokens' codes: the network's logits give g, the expected code, and v follows from g.
    """

    def __init__(
        self,
        network: nn.Module,
        path: Path | None = None,
        parameterisation: Parameterisation = "euler-fm",
        data_scale: float = 0.5,
        codebook: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.codebook: Any = codebook
        self.path = path or LinearPath(noise_scale=data_scale)
        self.data_scale = data_scale
        self.coefficients = PARAMETERISATIONS[parameterisation]

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, context: Any = None, self_cond: Tensor | None = None):
        """velocity; the one entry through which parameters may be swapped (torch.func.functional_call)."""
        if self.codebook is not None:
            return self.path.secant(x_t, self.endpoint(x_t, t, s, context, self_cond=self_cond), t)
        a, b = self._ab(t)
        return expand(a, x_t) * x_t + expand(b, x_t) * self._network(x_t, t, s, context, self_cond)

    def velocity(self, x_t: Tensor, t: Tensor, s: Tensor, context: Any = None, **more: Any) -> Tensor:
        """v_θ(x_t, t, s): the shape of x_t."""
        return self(x_t, t, s, context, **more)

    def endpoint(self, x_t: Tensor, t: Tensor, s: Tensor, context: Any = None, **more: Any) -> Tensor:
        """g: the data's end that the jump from t to s heads for."""
        if self.codebook is not None:
            return self.path.expected(self.codebook, self.logits(x_t, t, s, context, **more), x_t)
        return self.path.ends(x_t, self(x_t, t, s, context, **more), t)[0]

    def jump(self, x_t: Tensor, t: Tensor, s: Tensor, context: Any = None, **more: Any) -> Tensor:
        """X_{t→s}(x_t)."""
        if self.codebook is not None:
            return self.path.jump(x_t, self.endpoint(x_t, t, s, context, **more), t, s)
        return self.path.move(x_t, self(x_t, t, s, context, **more), t, s)

    def logits(self, x_t: Tensor, t: Tensor, s: Tensor, context: Any = None, self_cond: Tensor | None = None) -> Tensor:
        """(batch, position, V) of a token map."""
        if self.codebook is None:
            raise ValueError("a map without a codebook has no logits")
        return self._network(x_t, t, s, context, self_cond)

    def output_scale(self, t: Tensor, s: Tensor) -> Tensor:
        """|c_out|: how far a unit of the network's output, or of the code expected, moves the jump from t to s."""
        if self.codebook is not None:
            return (
                self.path.coefficients(t, s)[1] * (self.path.alpha(t) + self.path.sigma(t)) / self.path.sigma(t)
            ).abs()
        return (self.path.coefficients(t, s)[1] * self._ab(t)[1]).abs()

    def _ab(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.coefficients(self.path.alpha(t), self.path.sigma(t), self.data_scale, self.path.noise_scale)

    def _network(self, x_t: Tensor, t: Tensor, s: Tensor, context: Any, self_cond: Tensor | None) -> Tensor:
        more = {} if self_cond is None else {"self_cond": self_cond}
        return self.network(self._scaled(x_t, t), t, s, context, **more)

    def _scaled(self, x_t: Tensor, t: Tensor) -> Tensor:
        """c_in·x_t, of unit variance."""
        return expand(self.path.input_scale(t, self.data_scale), x_t) * x_t


@dataclass(frozen=True)
class ExactMap:
    """A map known in closed form, behind the names of FlowMap: velocity(x_t, t, s, context)."""

    path: Path
    v: Callable[[Tensor, Tensor, Tensor], Tensor]

    def velocity(self, x_t: Tensor, t: Tensor, s: Tensor, context: Any = None) -> Tensor:
        return self.v(x_t, t, s)

    def jump(self, x_t: Tensor, t: Tensor, s: Tensor, context: Any = None) -> Tensor:
        return self.path.move(x_t, self.v(x_t, t, s), t, s)
