"""Drifting models (2602.04770): one-step samples drift towards data and away from each other until both pulls cancel.

    L = ‖f(ε) − sg(f(ε) + V)‖²,   V = Σ_τ (W⁺y⁺ − W⁻y⁻)/λ_τ

Inside a group, y⁺ are data and y⁻ the generated samples themselves. A = √(softmax over rows × softmax over
columns) of −distance/τ, the own sample left out; W⁺ = A⁺·ΣA⁻, W⁻ = A⁻·ΣA⁺, so V = 0 where the two laws
agree. Distances are scaled to a mean of 1 and each V_τ to a root mean square of 1 (λ), as published (normalised=False: λ = 1).
"""

import torch
from torch import Tensor

from flowmap.objectives.base import Loss, Objective, StateBatch, mean_square
from flowmap.rng import Rng


class Drifting(Objective):
    coupling = "group"
    most_steps = 1
    takes_classes = False  # samples are drawn to the data of a whole group

    def __init__(
        self, group_size: int = 64, temperatures: tuple[float, ...] = (0.02, 0.05, 0.2), normalised: bool = True
    ) -> None:
        super().__init__()
        self.group_size, self.temperatures, self.normalised = group_size, temperatures, normalised

    def forward(self, model, batch: StateBatch, *, teacher=None, rng: Rng, step: int) -> Loss:
        if batch.size % self.group_size:
            raise ValueError(f"a slice of {batch.size} does not hold whole groups of {self.group_size}")
        one = batch.x_0.new_ones(batch.size)
        made = model.jump(model.path.draw_noise(rng, "eps", batch.x_0), one, 0 * one, batch.context)
        with torch.no_grad():
            groups = (
                part.to(torch.promote_types(part.dtype, torch.float32)).flatten(1).unflatten(0, (-1, self.group_size))
                for part in (made, batch.x_0)
            )
            with torch.autocast(made.device.type, enabled=False):
                field = self.field(*groups).reshape(made.shape)
        error = mean_square(made - (made.detach() + field))
        count = torch.tensor(float(batch.size), device=error.device)
        return Loss(error.sum(), count, {"drift": (error.sum().detach(), count)})

    @torch.no_grad()
    def field(self, x: Tensor, y: Tensor) -> Tensor:
        """V at generated x with data y, both (groups, M, D), fp32 or better → (groups, M, D), without a gradient."""
        size = x.shape[1]
        ends = torch.cat([y, x], 1)
        far = torch.cdist(x, ends, compute_mode="donot_use_mm_for_euclid_dist").clamp_min(1e-4)
        far = far / far[..., :size].mean((-2, -1), keepdim=True)
        far[..., size:].diagonal(dim1=-2, dim2=-1).fill_(float("inf"))  # the own sample
        ends = torch.cat([ends, torch.ones_like(ends[..., :1])], -1)  # its last column sums weights
        total = torch.zeros_like(x)
        for tau in self.temperatures:
            logits = far * (-1 / tau)
            affinity = logits.softmax(-1).mul_(logits.softmax(-2)).sqrt_()
            data, own = affinity[..., :size] @ ends[:, :size], affinity[..., size:] @ ends[:, size:]
            v = own[..., -1:] * data[..., :-1] - data[..., -1:] * own[..., :-1]
            size_of_v = v.square().mean((-2, -1), keepdim=True).sqrt().clamp_min(1e-6)
            total = total + (v / size_of_v if self.normalised else v)
        return total
