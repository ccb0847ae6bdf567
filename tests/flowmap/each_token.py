"""The posterior of the six hands where each of the two words has a time of its own, in closed form, and its exact flow."""

import torch
from torch import Tensor

from flowmap.path import expand
from tests.flowmap.six_hands import SixHands


class TwoTimes(SixHands):
    """t, s: (batch, 2). p(hand | x) ∝ exp Σ_l α_l/σ_l²·x_l·c_l. The exact map goes straight from t to s, u = t + τ(s − t),
    τ ∈ [0, 1]; with r_l = α_l/σ_l its p is the mean of the posterior over r_l, by the trapezium rule on a Heun path, which
    ends at `floor`, where it knows the words."""

    pieces = 200

    def at_once(self, y: Tensor, r: Tensor) -> Tensor:
        """p(x^l | y = x_t/σ_t), (batch, 2, V)."""
        logits = torch.einsum("bnv,hnv->bh", r[..., None] * y, self.members.view(6, 2, -1))
        return (logits.softmax(-1) @ self.members).view_as(y)

    def probabilities(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        t, s = (
            time.expand(x.shape[:2]) if time.ndim == 2 else expand(time, x[..., 0]).expand(x.shape[:2])
            for time in (t, s)
        )
        s = torch.minimum(s.clamp_min(self.floor), t)
        y, r = x / t[..., None], (1 - t) / t
        if torch.equal(t, s):
            return self.at_once(y, r)
        begin, mean = r, torch.zeros_like(x)
        for k in range(1, self.pieces + 1):
            u = t + (s - t) * (k / self.pieces)
            ahead = (1 - u) / u
            step = (ahead - r)[..., None]
            first = self.at_once(y, r)
            second = self.at_once(y + step * first, ahead)
            y, r, mean = y + step * (first + second) / 2, ahead, mean + step * (first + second) / 2
        moved = (r - begin)[..., None]
        return torch.where(moved > 0, mean / moved.clamp_min(1e-300), self.at_once(y, r))

    def logits(self, x: Tensor, t: Tensor, s: Tensor, context=None) -> Tensor:
        """context: `Known`, whose words are sure; the posterior of the others is told so by a state at time 1e-3."""
        if context is not None:
            x = torch.where(context.at[..., None], self.codebook.encode(context.tokens).to(x), x)
            t, s = (torch.where(context.at, 1e-3, expand(time, x[..., 0]).to(x)) for time in (t, s))
        return (self.probabilities(x, t, s) + 1e-30).log()
