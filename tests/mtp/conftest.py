import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

SIZES = {
    "llama": LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    ),
    "qwen3": Qwen3Config(
        vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=64, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0,
    ),
    "gpt2": GPT2Config(
        vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    ),
}  # fmt: skip


@pytest.fixture(params=list(SIZES))
def trunk(request):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(SIZES[request.param]).eval()
    for parameter in model.parameters():  # far from uniform, so that a wrong cache or mask shows
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    return model


@pytest.fixture(scope="module")
def four_words():
    """A trunk of four words, so that all texts of four can be counted."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32,
    )  # fmt: skip
    trunk = AutoModelForCausalLM.from_config(config).eval()
    for parameter in trunk.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    return trunk
