"""Cross-entropy at s = t: the denoiser of a flow language model, and the baseline that is never told where it lands.

    L = E Σ_l −log p_θ(x^l | x_t, t, t)        (2602.16813; math.md §4)

Least where p is the posterior of every token, whence v_{t→t} = (x_t − Cᵀp)/t is the velocity of the flow. Trained this
way rather than by regressing a velocity: gen-PPL 97 against 3801 on LM1B (2602.16813).
"""

from flowmap.objectives.tokens.base import TokenObjective
from flowmap.times import TimeLaw


class CrossEntropy(TokenObjective):
    each_token = True

    def __init__(self, times: TimeLaw | None = None, t_min: float = 1e-3) -> None:
        super().__init__(diagonal=1.0, times=times, t_min=t_min)
