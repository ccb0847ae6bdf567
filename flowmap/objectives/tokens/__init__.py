"""Objectives on token states: one method a file, on logits, all with the signature of `objectives.base.Objective`."""

from flowmap.objectives.base import Objective
from flowmap.objectives.tokens.ancestral import AncestralBound
from flowmap.objectives.tokens.base import TokenObjective, TokenStates
from flowmap.objectives.tokens.categorical import CategoricalFlowMap
from flowmap.objectives.tokens.diagonal import CrossEntropy, Endpoint
from flowmap.objectives.tokens.esd import EulerianKL
from flowmap.objectives.tokens.kl_psd import ProgressiveKL
from flowmap.objectives.tokens.lsd import LagrangianKL
from flowmap.objectives.tokens.on_states import EnergyOnStates, MomentMatchingOnStates
from flowmap.objectives.tokens.trajectory import TrajectoryKL
from flowmap.objectives.tokens.vlb import VariationalBound

TOKEN_OBJECTIVES: dict[str, type[Objective]] = {
    "cross-entropy": CrossEntropy,
    "endpoint": Endpoint,
    "vlb": VariationalBound,
    "k-step": AncestralBound,
    "kl-psd": ProgressiveKL,
    "trajectory": TrajectoryKL,
    "esd": EulerianKL,
    "lsd": LagrangianKL,
    "categorical": CategoricalFlowMap,
    "imm": MomentMatchingOnStates,
    "energy": EnergyOnStates,
}

__all__ = ["TOKEN_OBJECTIVES", "TokenObjective", "TokenStates", *(kind.__name__ for kind in TOKEN_OBJECTIVES.values())]
