"""Consistency trajectory models (2310.02279): two starts on one trajectory, pushed to s and from there to 0.

    Δ = f̄_{s→0}(f_{t→s}(x_t)) − sg f̄_{s→0}(f̄_{u→s}(x_u)),   x_u = x_t + (u−t)·v̄(x_t,t,t),  u = t − (t−s)/n

f̄ is the averaged network; the gradient passes through the first f̄_{s→0} but does not move it.
"""

import torch

from flowmap.objectives.two_time import Noised, TwoTime


class Trajectory(TwoTime):
    teacher_decay = 0.999
    linear = False

    def __init__(self, *args, pieces: int = 8, **more) -> None:
        super().__init__(*args, **more)
        self.pieces = pieces

    def residual(self, model, teacher, x: Noised, step):
        zero, move = torch.zeros_like(x.s), model.path.move
        u = x.t - (x.t - x.s) / self.pieces
        with torch.no_grad():
            x_u = move(x.x_t, teacher.velocity(x.x_t, x.t, x.t, x.context), x.t, u)
            other = move(x_u, teacher.velocity(x_u, u, x.s, x.context), u, x.s)
            target = move(other, teacher.velocity(other, x.s, zero, x.context), x.s, zero)
        landed = move(x.x_t, x.velocity(model), x.t, x.s)
        onward = fixed_velocity(teacher, landed, x.s, zero, x.context)
        return move(landed, onward, x.s, zero) - target


def fixed_velocity(model, x, t, s, context):
    """velocity with its weights held fixed, so that a gradient reaches x alone."""
    if not isinstance(model, torch.nn.Module):
        return model.velocity(x, t, s, context)
    weights = {name: value.detach() for name, value in (*model.named_parameters(), *model.named_buffers())}
    return torch.func.functional_call(model, weights, (x, t, s, context))
