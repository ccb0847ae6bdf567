"""Joint heads on a causal trunk: several correlated tokens from one forward pass.

    from mtp import MTPForCausalLM
    model = MTPForCausalLM.from_trunk(trunk, head="block-chain", block_size=4)

Names load on first use, so that `import mtp` stays light.
"""

from importlib import import_module

_HOMES = {
    "BlockContext": "mtp.heads.base",
    "Draft": "mtp.heads.base",
    "Confidence": "mtp.decoding.confidence",
    "JointHead": "mtp.heads.base",
    "Warp": "flowmap.warp",
    "build_head": "mtp.heads",
    "decode": "mtp.decoding.direct",
    "decode_verified": "mtp.decoding.speculative",
    "load_confidence": "mtp.decoding.confidence",
    "joint_generate": "mtp.generation",
    "MTPConfig": "mtp.model",
    "MTPForCausalLM": "mtp.model",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'mtp' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
