"""The base of a chain first, then the chain: what keeps U_k from going slack.

A chain's logits are U_k + correction(x_<k). Trained from its first step on the chain's likelihood alone, the correction
explains what U_k, the independent head it stands on, could have said, and U_k is left behind. Over the first T steps

    L = (1 − λ) L_base + λ L_chain,    λ = min(1, step / T)

L_base is the likelihood of softmax(U_k): at step 0 the gradient is the independent head's, after T the chain's.
"""

from mtp.heads.base import BlockNLL


def chain_weight(step: int, steps: float) -> float:
    """λ, a function of the step and of T = steps, nothing else."""
    return min(1.0, step / steps) if steps > 0 else 1.0


def blend(base: BlockNLL, chain: BlockNLL, weight: float) -> BlockNLL:
    """weight: λ. What is reported is the chain's."""
    return BlockNLL((1 - weight) * base.loss + weight * chain.loss, chain.sum, chain.count)
