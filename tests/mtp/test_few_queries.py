"""Attention of a few queries a row: the same numbers as transformers' sdpa, only where it pays, and nothing left behind."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mtp import MTPForCausalLM, decode, decode_verified
from mtp.decoding import few_queries
from mtp.decoding.direct import compiled_step
from mtp.decoding.few_queries import FEW, MANY, NAME, attend, few_query_attention


class Layer(torch.nn.Module):
    is_causal = True

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


def masks(batch: int, n: int, length: int) -> dict[str, torch.Tensor]:
    look = torch.rand(batch, 1, n, length) < 0.7
    look[..., 0] = True
    added = torch.zeros(look.shape).masked_fill(~look, torch.finfo(torch.float32).min)
    return {"bool": look, "added": added}


@pytest.mark.parametrize("n", [1, 3, FEW, FEW + 1])
@pytest.mark.parametrize("kind", ["bool", "added"])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_it_is_transformers_sdpa(n, kind, key_heads):
    torch.manual_seed(0)
    q, (k, v) = torch.randn(3, 4, n, 8), torch.randn(2, 3, key_heads, 11, 8)
    mask = masks(3, n, 11)[kind]
    own, _ = attend(Layer(4 // key_heads), q, k, v, mask, scaling=0.3)
    theirs, _ = sdpa_attention_forward(Layer(4 // key_heads), q, k, v, mask, scaling=0.3)
    assert own.shape == theirs.shape
    assert torch.allclose(own, theirs, atol=1e-6)


def test_the_compiler_is_told_the_shape_and_strides_that_it_gets():
    q, k, v = (torch.randn(8, 4, n, 6) for n in (3, 9, 9))
    q = q.transpose(1, 2).contiguous().transpose(1, 2)  # as a layer's own come
    for mask in (None, torch.ones(8, 1, 3, 9, dtype=torch.bool)):
        torch.library.opcheck(few_queries.opaque, (q, k, v, mask, 0.5), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("n", [1, 5])
def test_without_a_mask_several_queries_are_causal_and_one_sees_all(n):
    q, k, v = torch.randn(3, 2, 2, n, 8)
    own, _ = attend(Layer(1), q, k, v, None)
    theirs, _ = sdpa_attention_forward(Layer(1), q, k, v, None)
    assert torch.allclose(own, theirs, atol=1e-6)


def trunk_of(dtype: torch.dtype, attention: str = "sdpa") -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM._from_config(config, attn_implementation=attention).to(dtype).eval()


@pytest.mark.parametrize(
    ("dtype", "batch", "attention", "taken"),
    [
        (torch.bfloat16, MANY, "sdpa", True),
        (torch.bfloat16, MANY - 1, "sdpa", False),
        (torch.float32, MANY, "sdpa", False),
        (torch.bfloat16, MANY, "eager", False),
    ],
)
def test_only_where_it_pays_and_nothing_is_left_behind(dtype, batch, attention, taken):
    trunk = trunk_of(dtype, attention)
    with pytest.raises(KeyError), few_query_attention(trunk, batch):
        assert (trunk.config._attn_implementation == NAME) == taken
        raise KeyError
    assert trunk.config._attn_implementation == attention


@pytest.mark.parametrize("how", ["direct", "verified", pytest.param("compiled", marks=pytest.mark.slow)])
def test_decoders_take_it_and_say_the_same_of_the_text(how, monkeypatch):
    """Scores of what was written, by a pass over the whole text, are those that the decoder gave it."""
    calls = []
    monkeypatch.setattr(few_queries, "attend", lambda *a, **o: calls.append(a[1].shape[2]) or attend(*a, **o))
    model = MTPForCausalLM.from_trunk(trunk_of(torch.bfloat16), "independent", 3).to(torch.bfloat16).eval()
    ids = torch.randint(31, (MANY, 5), generator=torch.Generator().manual_seed(1))
    if how == "verified":
        out = decode_verified(model, ids, max_new_tokens=6, verify="token")
    else:
        step = compiled_step(model) if how == "compiled" else None
        out = decode(model, ids, max_new_tokens=6, block_size=1, step_states=step)
    assert set(calls) == {5, 3 if how == "verified" else 1}
    logits = model(torch.cat([ids, out.tokens], 1)).logits[:, 4:-1]
    log_p = logits.float().log_softmax(-1).gather(-1, out.tokens[..., None])[..., 0]
    assert (log_p - out.log_q).abs().max() < 0.05  # bf16: half a per cent of a logit of 5
