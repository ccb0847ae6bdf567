"""The reference trunks of the speed tables, with random weights: only their shapes count."""

from typing import Any

import torch

SHAPES: dict[str, dict[str, Any]] = {
    "S": {
        "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
        "num_attention_heads": 4, "tie_word_embeddings": True, "max_position_embeddings": 2048,
    },
    "M": {
        "vocab_size": 32_000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
        "num_attention_heads": 12, "tie_word_embeddings": True, "max_position_embeddings": 2048,
    },
    "L": {
        "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
        "max_position_embeddings": 2048,
    },
}  # fmt: skip
"""S: 4 × 256; M: 12 × 768; L: the shape of Qwen3-0.6B."""


def reference_trunk(size: str, dtype: torch.dtype, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

    if size not in SHAPES:
        raise ValueError(f"--reference {size}: choose from {', '.join(SHAPES)}")
    torch.manual_seed(0)
    config = (Qwen3Config if size == "L" else LlamaConfig)(**SHAPES[size])
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval().to(device)
