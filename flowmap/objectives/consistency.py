"""Easy consistency tuning, ECT (2406.14548): D(x_t) = X_{t→0}(x_t) at two near times of one pair agree.

    L = (√(‖D(x_t) − sg D(x_r)‖² + c²) − c)/(ς_t−ς_r),   ς_r = ς_t·(1 − n/q^a),  n = 1 + k·sigmoid(−b·ς_t),  a = ⌈step/d⌉

ς = ν·σ/α is the noise beside data of full size, the time of that paper. D(x_0) = x_0 at r = 0, so the first stage is plain denoising and r closes in on t stage by stage.
The same x_0 and ε at both times; c = 0.00054·√D (2310.14189). The gradient at the exact map is O(t−r) for a large c.
"""

import torch

from flowmap.objectives.base import Loss, Objective, StateBatch
from flowmap.path import Path
from flowmap.rng import Rng
from flowmap.times import LogitNormal, TimeLaw

LATEST = 1 - 1e-4
"""At 1 there is nothing but noise, of no size that could be stepped back in."""


class Consistency(Objective):
    version = 2
    bound = True
    sampler = "restart"  # it only ever jumps to 0

    def __init__(
        self,
        times: TimeLaw | None = None,
        q: float = 2.0,
        k: float = 8.0,
        b: float = 1.0,
        stage: int = 500,
        stages: int = 8,
        huber: float = 0.00054,
    ) -> None:
        super().__init__()
        self.times, self.q, self.k, self.b, self.stage, self.stages = times or LogitNormal(), q, k, b, stage, stages
        self.huber = huber

    def earlier(self, path: Path, t: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(r, ς_t − ς_r)."""
        noise = path.noise_scale * path.ratio(t)
        a = min(self.stages, step // self.stage + 1)
        less = noise * (1 - (1 + self.k * torch.sigmoid(-self.b * noise)) / self.q**a).clamp_min(0)
        return path.from_ratio(less / path.noise_scale), noise - less

    def lands(self, rng: Rng, r: torch.Tensor) -> torch.Tensor:
        """s ≤ r, where the jumps of both end."""
        return torch.zeros_like(r)

    def weight(self, path: Path, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor | float:
        """Of what two jumps from t to s are apart."""
        return 1.0

    def forward(self, model, batch: StateBatch, *, teacher=None, rng: Rng, step: int) -> Loss:
        t = self.times.draw(rng, "t", batch.size).to(batch.x_0).clamp_max(LATEST)
        r, apart = self.earlier(model.path, t, step)
        s = self.lands(rng, r)
        eps = model.path.draw_noise(rng, "eps", batch.x_0)
        x_t, x_r = (model.path.noise(batch.x_0, eps, at) for at in (t, r))
        with torch.no_grad():
            target = model.jump(x_r, r, s, batch.context)
        delta = model.jump(x_t, t, s, batch.context) - target
        delta = delta.to(torch.promote_types(delta.dtype, torch.float32)).flatten(1)
        c = self.huber * delta.shape[1] ** 0.5
        error = ((delta.square().sum(1) + c**2).sqrt() - c) / apart.clamp_min(1e-4) * self.weight(model.path, t, s)
        count = torch.tensor(float(batch.size), device=t.device)
        return Loss(error.sum(), count, {"consistency": (error.sum().detach(), count)})
