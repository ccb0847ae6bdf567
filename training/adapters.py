"""Low-rank adapters of a trunk (LoRA, 2106.09685), by peft: W + B A on every linear map but the unembedding.

B starts at zero and A at random, so that an adapted trunk begins as itself. What is saved has the sum for its weight:
whoever loads it needs no peft, and pays nothing for the adapters.
"""

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

NAME = "default"


def adapt(trunk: nn.Module, rank: int) -> Any:
    """Puts adapters into the trunk in place and freezes all else in it. → peft's handle on them. lora_alpha is rank, so
    that the learning rate alone sets how far they go."""
    try:
        from peft import LoraConfig, LoraModel
    except ImportError as error:
        raise ValueError("trunk.lora needs peft: pip install 'leaplm[peft]'") from error
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return LoraModel(trunk, config, NAME)


def adapter_weights(adapted: Any) -> nn.ParameterList:
    """A and B of every map, in the order of the trunk's modules."""
    return nn.ParameterList(p for p in adapted.parameters() if p.requires_grad)


def merged_state(adapted: Any, weights: Sequence[Tensor]) -> dict[str, Tensor]:
    """The trunk's state with these adapters added in, under its own names. Made on a copy: to add and take away again
    would round, and a run that saves must go on as one that does not."""
    copied = copy.deepcopy(adapted)
    for own, given in zip(adapter_weights(copied), weights, strict=True):
        own.data.copy_(given)
    return copied.merge_and_unload().state_dict()
