"""Attention of a few queries a row, for decoding in large batches on a CPU.

torch's fused CPU kernel is made for many queries: given one of a row in bf16 it takes four to six times as long as its two
products written out, given four half as long again, from some eight rows on. So, inside `few_query_attention`, a trunk
that attends by `sdpa` goes by the products where a pass holds a few queries a row.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from flowmap.attention import plain

NAME = "leaplm_few_queries"
FEW, MANY = 16, 8
"""Queries of a row up to which, and rows from which, it pays."""


@contextmanager
def few_query_attention(trunk: Any, batch: int) -> Iterator[None]:
    """trunk: a causal LM of transformers, whose attention is this one inside, and what it was after."""
    slow = batch >= MANY and trunk.device.type == "cpu" and trunk.dtype is torch.bfloat16
    if not slow or trunk.config._attn_implementation != "sdpa":
        yield
        return
    _register()
    trunk.config._attn_implementation = NAME
    try:
        yield
    finally:
        trunk.config._attn_implementation = "sdpa"


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def written_out(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    return plain(query, key, value, mask, scale=scale)


opaque = torch.library.custom_op("leaplm::few_query_products", written_out, mutates_args=())
"""The same as one operation to the compiler, whose own products of one row take longer than torch's."""
opaque.register_fake(lambda query, key, value, mask, scale: query.new_empty(query.shape))


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """query: (batch, heads, n, size); key, value: (batch, key heads, m, size); mask: (batch, 1, n, m), bool or added, or
    None where one query looks at everything → (batch, n, heads, size), None."""
    batch, heads, n, size = query.shape
    others = options.get("dropout") or options.get("softcap") or options.get("position_bias") is not None
    if n > FEW or others or (attention_mask is None and n > 1):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    shared = heads // key.shape[1]  # query heads that read the same keys become queries of one head
    if attention_mask is not None and shared > 1:
        attention_mask = attention_mask.repeat(1, 1, shared, 1)
    together = query.reshape(batch, -1, shared * n, size)
    products = opaque if torch.compiler.is_compiling() else written_out
    out = products(together, key, value, attention_mask, float(options.get("scaling") or size**-0.5))
    return out.view(batch, heads, n, size).transpose(1, 2).contiguous(), None
