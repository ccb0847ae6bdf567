"""What the objectives on v_θ(x_t, t, s) share: most samples on the diagonal s = t, where the loss is flow matching,
the rest on a residual that is zero at the exact two-time map.

    L = E w·‖Δ‖²,   Δ = v(x_t, t, t) − (ε − x_0) on the diagonal, the method's own off it

w: 1, or sg(‖Δ‖² + c)^{−p} (MeanFlow 2505.13447), or e^{−ω(t,s)}‖Δ‖² + ω(t,s) with a learned log-weight
ω (2505.18825). ‖Δ‖² in w is a sum over elements, the loss a mean.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flowmap.objectives.base import Loss, Objective, StateBatch, mean_square, require_linear
from flowmap.path import Path, expand
from flowmap.rng import Rng
from flowmap.times import TimeLaw, Uniform, ordered_pair


@dataclass(frozen=True)
class Noised:
    """Rows of a batch on their way: x_t = α_t x_0 + σ_t ε, and dx = ε − x_0, the velocity of that pair.
    u: one more U[0, 1) a row, for what a method draws besides."""

    x_0: Tensor
    x_t: Tensor
    dx: Tensor
    t: Tensor
    s: Tensor
    context: Any
    u: Tensor

    def __getitem__(self, rows: Tensor) -> "Noised":
        context = None if self.context is None else self.context[rows]
        return Noised(self.x_0[rows], self.x_t[rows], self.dx[rows], self.t[rows], self.s[rows], context, self.u[rows])

    def span(self) -> Tensor:
        """t − s, broadcast over the state."""
        return expand(self.t - self.s, self.x_t)

    def velocity(self, model: Any) -> Tensor:
        """v(x_t, t, s)."""
        return model.velocity(self.x_t, self.t, self.s, self.context)


class TwoTime(Objective):
    """diagonal: share of the samples with s = t. times: law of t there; spans: of t and s off it, default the same. power, floor: p and c of the adaptive weight.
    learned_weight: the log-weight ω instead. linear: whether the residual rests on identities of the linear path, where
    v is the derivative of the jump."""

    linear = True
    time_scale = 4.0

    def __init__(
        self,
        diagonal: float = 0.75,
        times: TimeLaw | None = None,
        power: float = 0.0,
        floor: float = 1e-3,
        learned_weight: bool = False,
        spans: TimeLaw | None = None,
    ) -> None:
        super().__init__()
        self.diagonal, self.times, self.power, self.floor = diagonal, times or Uniform(), power, floor
        self.spans = spans
        self.log_weight = LogWeight() if learned_weight else None

    def check_path(self, path: Path) -> None:
        if self.linear and self.diagonal < 1:
            require_linear(self, path)

    def pair(self, rng: Rng, count: int, step: int) -> tuple[Tensor, Tensor]:
        """(t, s) off the diagonal."""
        return ordered_pair(self.spans or self.times, rng, count)

    def residual(self, model: Any, teacher: Any, x: Noised, step: int) -> Tensor:
        """Δ off the diagonal, (rows, *state). teacher: the averaged network, or the model itself."""
        raise NotImplementedError

    def forward(self, model, batch: StateBatch, *, teacher=None, rng: Rng, step: int) -> Loss:
        self.check_path(model.path)
        count = batch.size
        on_diagonal = rng.uniform("diagonal", count) < self.diagonal
        t = s = self.times.draw(rng, "t", count).to(batch.x_0)
        u = torch.zeros_like(t)
        if self.diagonal < 1:
            far, near = (time.to(t) for time in self.pair(rng, count, step))
            t, s = torch.where(on_diagonal, t, far), torch.where(on_diagonal, t, near)
            u = rng.uniform("u", count).to(t)
        eps = model.path.draw_noise(rng, "eps", batch.x_0)
        x_t = model.path.noise(batch.x_0, eps, t)
        x = Noised(batch.x_0, x_t, eps - batch.x_0, t, s, batch.context, u)
        local, few = (torch.nonzero(mask.to(t.device))[:, 0] for mask in (on_diagonal, ~on_diagonal))
        total, metrics = torch.zeros((), device=t.device), {}
        for name, rows in (("diagonal", local), ("few_step", few)):
            error = torch.zeros((), device=t.device)
            if len(rows):
                part = x[rows]
                if name == "diagonal":
                    delta = part.velocity(model) - part.dx
                else:
                    delta = self.residual(model, teacher or model, part, step)
                error = mean_square(delta)
                total = total + self._weighted(error, part, delta[0].numel()).sum()
            metrics[name] = (error.sum().detach(), torch.tensor(float(len(rows)), device=t.device))
        return Loss(total, torch.tensor(float(count), device=t.device), metrics)

    def _weighted(self, error: Tensor, x: Noised, size: int) -> Tensor:
        if self.log_weight is not None:
            omega = self.log_weight(x.t, x.s)
            return (-omega).exp() * error + omega
        if self.power:
            return error * (error.detach() * size + self.floor) ** -self.power
        return error


class LogWeight(nn.Module):
    """ω(t, s), a small network that starts at 0: the log of the loss to be expected there."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, width), nn.Linear(width, 1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, t: Tensor, s: Tensor) -> Tensor:
        at = torch.stack([t, s], -1).to(self.first.weight.dtype)
        return self.second(torch.tanh(self.first(4 * at - 2)))[:, 0]
