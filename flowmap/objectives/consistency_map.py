"""Easy consistency tuning (2406.14548) of the whole two-time map, ours: jumps from two near times of one pair agree wherever they end.

    L = B(t,0)/B(t,s)·(√(‖Δ‖² + c²) − c)/(ς_t−ς_r),   Δ = X_{t→s}(x_t) − sg X_{r→s}(x_r),   s ≤ r < t

s = 0 for a share of the samples, which are those of ECT, else uniform in [0, r]. A jump adds B(t,s)·v to A(t,s)·x_t: the weight keeps that of v even
wherever it lands. c is of Δ itself: near s = r, where Δ is (t−r) times what flow matching regresses on, the loss is its square, and v the mean.
No derivative, no teacher, two passes of which one keeps a gradient. At the exact map the gradient is O(t−r) for a large c, as of ECT.
"""

import torch

from flowmap.objectives.consistency import Consistency


class ConsistencyMap(Consistency):
    """whole: the share of samples whose jumps end at 0."""

    version = 2
    sampler = "pushforward"

    def __init__(self, *args, whole: float = 0.5, **more) -> None:
        super().__init__(*args, **more)
        if not 0 <= whole <= 1:
            raise ValueError(f"whole {whole}: the share of samples whose jumps end at 0, from 0 to 1")
        self.whole = whole

    def lands(self, rng, r):
        there = rng.uniform("whole", len(r)) < self.whole
        return torch.where(there, 0.0, rng.uniform("s", len(r))).to(r) * r

    def weight(self, path, t, s):
        far, near = (path.coefficients(t, end)[1] for end in (torch.zeros_like(s), s))
        return torch.where(near == 0, 1.0, far / near)  # 0/0 at the data itself
