"""Flow matching: regress the local velocity. The baseline that is never told where it will land.

    L = E ‖v_θ(x_t, t, t) − (ε − x_0)‖²        (2210.02747, eq. 23; rectified flow 2209.03003 on the linear path)

On another path v is the secant direction e − g of `flowmap.path`, whose regression target is the same.
"""

from flowmap.objectives.two_time import TwoTime
from flowmap.times import TimeLaw


class FlowMatching(TwoTime):
    sampler = "euler"
    time_scale = 1000.0

    def __init__(self, times: TimeLaw | None = None) -> None:
        super().__init__(diagonal=1.0, times=times)
