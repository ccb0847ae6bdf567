"""The denoiser of a flow language model, at s = t alone: the baselines that are never told where they land.

    cross-entropy   L = E Σ_l −log p_θ(x^l | x_t, t, t)                    (2602.16813; math.md §4)
    endpoint        L = E Σ_l ‖Cᵀp^l − c_{x^l}‖²·σ_t^{−power}              power 0: the data's end; 2: the secant's velocity

All are least where p is the posterior of every token, the squares at least in its mean Cᵀp, whence v_{t→t} = (x_t − Cᵀp)/t
is the velocity of the flow. Trained by cross-entropy gen-PPL is 97, by endpoints 120, by velocities 3801 on LM1B (2602.16813).
"""

from torch import Tensor

from flowmap.objectives.tokens.base import NoisedTokens, TokenObjective, cross_entropy
from flowmap.path import expand
from flowmap.times import TimeLaw


class CrossEntropy(TokenObjective):
    each_token = True

    def __init__(
        self,
        times: TimeLaw | None = None,
        t_min: float = 1e-3,
        self_conditioning: float = 0.0,
        fixed_point: float = 0.0,
    ) -> None:
        more = {"self_conditioning": self_conditioning, "fixed_point": fixed_point}
        super().__init__(diagonal=1.0, times=times, t_min=t_min, **more)


class Endpoint(CrossEntropy):
    """power: of the weight. Codes are not moved: squares would bring them all together."""

    def __init__(self, times: TimeLaw | None = None, power: float = 0.0, t_min: float = 0.01, **more: float) -> None:
        super().__init__(times, t_min, **more)
        self.power = power

    def noised(self, model, batch, rng, step):
        with model.codebook.held():
            return super().noised(model, batch, rng, step)

    def local_error(self, model, x: NoisedTokens, logits: Tensor) -> tuple[Tensor, Tensor]:
        with model.codebook.held():
            wrong = model.codebook.expected(logits) - model.codebook.encode(x.tokens)
        weight = expand(model.path.sigma(x.t) ** -self.power, wrong)
        return (weight * wrong.square()).flatten(1).sum(1), cross_entropy(logits.detach(), x.tokens)
