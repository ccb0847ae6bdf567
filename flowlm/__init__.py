"""Flow language models: continuous states of tokens, written in one to a few refinement steps.

    from flowlm import FlowLM
    model = FlowLM.from_pretrained("runs/flow-poker/checkpoints/step-1500/model")
    model.generate(prompt_ids, num_steps=1)

Names load on first use, so that `import flowlm` stays light.
"""

from importlib import import_module

_HOMES = {
    "AutoregressiveLM": "flowlm.discrete.model",
    "Blocks": "flowlm.blocks",
    "FlowGenerationConfig": "flowlm.generation",
    "FlowLM": "flowlm.model",
    "FlowLMConfig": "flowlm.model",
    "Known": "flowlm.token_map",
    "MaskedDiffusionLM": "flowlm.discrete.model",
    "TokenMap": "flowlm.token_map",
}
__all__ = list(_HOMES)

MODEL_TYPES = {
    "leaplm-autoregressive": "AutoregressiveLM",
    "leaplm-flow": "FlowLM",
    "leaplm-masked-diffusion": "MaskedDiffusionLM",
}
"""What config.json calls each model of windows."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'flowlm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
