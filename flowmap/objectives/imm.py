"""Inductive moment matching (2503.07565): from t and from a nearer r, jumps to s must have the same law.

    L = E w(s,t)·MMD²(X_{t→s}(x_t), sg X_{r→s}(x_r)),   x_t, x_r of the same (x_0, ε), groups of M share (t, r, s)

r is a step back in η = σ/α of (η_max − η_min)/2^k, but never below s, where the target is real noised data:
that is where the induction starts. The teacher is the current network. Trained on the V-statistic,
as published; `mmd2` in the metrics is the paired U-statistic, which is 0 in the mean at the exact map.
Steps back finer than half precision tells apart (k > `COARSEST`) are taken in full precision on both branches,
whose roundings would add up over the 2^k hops from noise to data.
"""

import torch
from torch import Tensor

from flowmap.kernels import KERNELS, Statistic, mmd2
from flowmap.objectives.base import Loss, Objective, StateBatch
from flowmap.path import Path
from flowmap.rng import Rng

COARSEST = 8
"""bfloat16 has 8 bits: two states a share 2^−k of the way apart are told apart up to here."""


class InductiveMomentMatching(Objective):
    """group_size: M. k: 2^−k is the step back, 12 to 15 at large scale, 8 on toys. a, b: of the weight.
    t_max: 0.994 on the linear path, 0.996 on the cosine. weighted: False drops w(s, t)."""

    coupling = "group"
    version = 2

    def __init__(
        self,
        group_size: int = 4,
        k: int = 12,
        kernel: str = "laplace",
        statistic: Statistic = "v",
        a: float = 1.0,
        b: float = 4.0,
        t_min: float = 0.0,
        t_max: float = 0.994,
        weighted: bool = True,
    ) -> None:
        super().__init__()
        if kernel not in KERNELS:
            raise ValueError(f"kernel {kernel!r}: known are {', '.join(KERNELS)}")
        self.group_size, self.k, self.kernel = group_size, k, KERNELS[kernel]
        self.statistic: Statistic = statistic
        self.a, self.b, self.t_min, self.t_max, self.weighted = a, b, t_min, t_max, weighted

    def times(self, path: Path, rng: Rng, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """(t, r, s) of `count` groups, float64: s ~ U(t_min, t), r = max(s, min(t − 1e-4, η⁻¹(η_t − step)))."""
        u, v = (rng.uniform(name, count, dtype=torch.float64) for name in ("t", "s"))
        t = self.t_min + (self.t_max - self.t_min) * u
        s = self.t_min + (t - self.t_min) * v
        low, high = (
            path.ratio(torch.tensor(end, dtype=torch.float64, device=t.device)) for end in (self.t_min, self.t_max)
        )
        back = path.from_ratio((path.ratio(t) - (high - low) / 2**self.k).clamp_min(low))
        return t, torch.maximum(s, torch.minimum(t - 1e-4, back)), s

    def weight(self, path: Path, t: Tensor) -> Tensor:
        """w = ½·sigmoid(b − λ_t)·(−dλ/dt)·α_t^a/(α_t² + σ_t²)."""
        t = t.clamp(1e-4, 1 - 1e-4)
        alpha, sigma = path.alpha(t), path.sigma(t)
        rate = torch.sigmoid(self.b - path.log_snr(t)) * path.log_snr_fall(t) / 2
        return rate * alpha**self.a / (alpha**2 + sigma**2)

    def forward(self, model, batch: StateBatch, *, teacher=None, rng: Rng, step: int) -> Loss:
        size, path, x_0 = self.group_size, model.path, batch.x_0
        exact = self.times(path, rng.groups(size), batch.size // size)
        t, r, s = (time.repeat_interleave(size).to(x_0) for time in exact)
        eps = path.draw_noise(rng, "eps", x_0)
        device = x_0.device.type
        with torch.autocast(device, enabled=torch.is_autocast_enabled(device) and self.k <= COARSEST):
            y_t = model.jump(path.noise(x_0, eps, t), t, s, batch.context)
            with torch.no_grad():
                y_r = model.jump(path.noise(x_0, eps, r), r, s, batch.context)
        kind = torch.promote_types(x_0.dtype, torch.float32)
        landed, target = (y.to(kind).flatten(1).unflatten(0, (-1, size)) for y in (y_t, y_r))
        bandwidth = (1 / model.output_scale(exact[0], exact[2]).clamp_min(1e-6)).to(kind)
        loss = mmd2(self.kernel, landed, target, bandwidth, self.statistic)
        weight = self.weight(path, exact[0]).to(kind) if self.weighted else torch.ones_like(loss)
        groups = torch.tensor(float(len(loss)), device=loss.device)
        metrics = {}
        if size > 1:
            fair = mmd2(self.kernel, landed.detach(), target, bandwidth, "paired-u")
            metrics["mmd2"] = (fair.sum(), groups)
        return Loss((weight * loss).sum() * size, groups * size, metrics)
