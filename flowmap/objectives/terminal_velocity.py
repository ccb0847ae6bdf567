"""Terminal velocity matching (2511.19797): the Lagrangian residual against an averaged network.

Δ = d/ds[(s−t) v_θ(x_t, t, s)] − v_EMA(sg[x_t + (s−t)v], s, s)
"""

from flowmap.objectives.lagrangian import Lagrangian


class TerminalVelocity(Lagrangian):
    teacher_decay = 0.99
