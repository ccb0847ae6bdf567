"""Laws of time that learn on the way where the cross-entropy falls. Their state is saved with the objective's."""

from flowmap.clocks.base import Clock
from flowmap.clocks.gumbel import Gumbel
from flowmap.clocks.monotone import Monotone
from flowmap.clocks.running import Running

__all__ = ["Clock", "Gumbel", "Monotone", "Running"]
