"""Energy score (as in CALM 2510.27688): a one-step generator from a proper scoring rule, without pairs or teachers.

    L = 2·E‖z−y‖^β − E‖z−z'‖^β,   z, z' = X_{1→0} of two noises, y = x_0

E‖z−y‖ is estimated from both draws. Least where the law of z given the context is that of y; 0 < β < 2.
"""

import torch

from flowmap.kernels import SMALL
from flowmap.objectives.base import Loss, Objective, StateBatch
from flowmap.rng import Rng


class EnergyScore(Objective):
    most_steps = 1

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        if not 0 < beta < 2:
            raise ValueError(f"beta {beta} must lie between 0 and 2: elsewhere the score is not strictly proper")
        self.beta = beta

    def forward(self, model, batch: StateBatch, *, teacher=None, rng: Rng, step: int) -> Loss:
        one = batch.x_0.new_ones(batch.size)
        z, other = (
            model.jump(model.path.draw_noise(rng, name, batch.x_0), one, 0 * one, batch.context)
            for name in ("eps", "other")
        )
        score = self._far(z, batch.x_0) + self._far(other, batch.x_0) - self._far(z, other)
        count = torch.tensor(float(batch.size), device=score.device)
        return Loss(score.sum(), count, {"energy_score": (score.sum().detach(), count)})

    def _far(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """‖x − y‖^β/√D, (batch,)."""
        square = (x - y).to(torch.promote_types(x.dtype, torch.float32)).flatten(1).square().sum(1).clamp_min(SMALL)
        return square ** (self.beta / 2) / x[0].numel() ** 0.5
