"""Objectives: one method a file, all with the signature of `base.Objective`."""

from flowmap.objectives.alpha_flow import AlphaFlow
from flowmap.objectives.base import Loss, Objective, StateBatch
from flowmap.objectives.consistency import Consistency
from flowmap.objectives.consistency_map import ConsistencyMap
from flowmap.objectives.continuous_consistency import ContinuousConsistency
from flowmap.objectives.drifting import Drifting
from flowmap.objectives.energy import EnergyScore
from flowmap.objectives.eulerian import Eulerian
from flowmap.objectives.flow_matching import FlowMatching
from flowmap.objectives.imm import InductiveMomentMatching
from flowmap.objectives.improved_mean_flow import ImprovedMeanFlow
from flowmap.objectives.lagrangian import Lagrangian
from flowmap.objectives.mean_flow import MeanFlow
from flowmap.objectives.progressive import Progressive
from flowmap.objectives.shortcut import Shortcut
from flowmap.objectives.terminal_velocity import TerminalVelocity
from flowmap.objectives.trajectory import Trajectory

OBJECTIVES: dict[str, type[Objective]] = {
    "flow-matching": FlowMatching,
    "imm": InductiveMomentMatching,
    "shortcut": Shortcut,
    "mean-flow": MeanFlow,
    "improved-mean-flow": ImprovedMeanFlow,
    "lagrangian": Lagrangian,
    "eulerian": Eulerian,
    "progressive": Progressive,
    "consistency": Consistency,
    "consistency-map": ConsistencyMap,
    "continuous-consistency": ContinuousConsistency,
    "trajectory": Trajectory,
    "terminal-velocity": TerminalVelocity,
    "alpha-flow": AlphaFlow,
    "drifting": Drifting,
    "energy": EnergyScore,
}

__all__ = ["OBJECTIVES", "Loss", "Objective", "StateBatch", *(kind.__name__ for kind in OBJECTIVES.values())]
