"""The one place that knows attention backends: a name → a function of queries, keys and values.

`sdpa` (default) is torch's scaled_dot_product_attention; `flex_attention`, `flash_attention_2` and `flash_attention_4` come from
transformers' registry; `eager` is plain products and `sdpa_math` torch's written-out kernel, and forward-mode derivatives (JVP) pass through both. What
a machine has not got falls back to `sdpa`, with a warning, once. On CPUs the fused kernel is made for long windows: in
bf16 its backward pads short ones, and plain products take a third of its time (a twelfth at 16 states).
"""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""q: (batch, heads, n, size), k, v: (batch, heads, m, size), mask: bool, True = look, broadcastable to
(batch, heads, n, m), or None → (batch, heads, n, size)."""

NAMES = ("sdpa", "sdpa_math", "eager", "flex_attention", "flash_attention_2", "flash_attention_4")


SHORT = 256
"""Positions, at most, of a window whose products are written out on CPUs in bf16."""


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    attend = plain if is_short(q, k) else nn.functional.scaled_dot_product_attention
    return attend(q, k, v, attn_mask=mask)


class ShortAttention(TorchFunctionMode):
    """Inside, torch's scaled_dot_product_attention of a short bf16 window on a CPU is `plain`, whoever calls it."""

    entered: ClassVar[int] = 0

    def __enter__(self):
        ShortAttention.entered += 1
        return super().__enter__()

    def __exit__(self, *error):
        ShortAttention.entered -= 1
        return super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        options = kwargs or {}
        fused = func is nn.functional.scaled_dot_product_attention
        dropout = args[4] if len(args) > 4 else options.get("dropout_p")
        if fused and len(args) > 1 and is_short(args[0], args[1]) and not dropout:
            return plain(*args, **options)
        return func(*args, **options)


def as_forwards() -> tuple[AbstractContextManager, AbstractContextManager]:
    """For torch's checkpoint, its `context_fn`: what is made again backwards, outside of `ShortAttention`, is made by the
    attention of the forward pass."""
    return nullcontext(), ShortAttention() if ShortAttention.entered else nullcontext()


def is_short(q: Tensor, k: Tensor) -> bool:
    return q.device.type == "cpu" and _dtype(q) is torch.bfloat16 and max(q.shape[-2], k.shape[-2]) <= SHORT


def _dtype(x: Tensor) -> torch.dtype:
    """What a product of x is taken in."""
    lowered = torch.is_autocast_enabled(x.device.type) and x.dtype is torch.float32
    return torch.get_autocast_dtype(x.device.type) if lowered else x.dtype


def plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """scaled_dot_product_attention without dropout, all in the inputs' own type (under autocast in its): scores are
    rounded to it before the softmax, whose sums are fp32 inside."""
    query, key, value = (x.to(_dtype(x)) for x in (query, key, value))
    if enable_gqa:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    with torch.autocast(query.device.type, enabled=False):
        scores = (query * (scale or query.shape[-1] ** -0.5)) @ key.transpose(-1, -2)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None and attn_mask.dtype is torch.bool:
            scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
        elif attn_mask is not None:
            scores = scores + attn_mask.clamp_min(torch.finfo(scores.dtype).min).to(scores.dtype)
        return scores.softmax(-1) @ value


def sdpa_math(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """torch's own written-out kernel: any derivative goes through it."""
    with differentiable():
        return sdpa(q, k, v, mask)


def eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(qkᵀ/√size) v, the softmax in fp32 or better."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).to(v.dtype) @ v


def differentiable():
    """Inside, `sdpa` is written out, so that torch.func.jvp goes through a network that was built with it."""
    return sdpa_kernel([SDPBackend.MATH])


def resolve(name: str) -> Attention:
    """The backend of that name, or `sdpa` with a warning where it cannot run."""
    if name not in NAMES:
        raise ValueError(f"attention {name!r}: known are {', '.join(NAMES)}")
    own: dict[str, Attention] = {"sdpa": sdpa, "sdpa_math": sdpa_math, "eager": eager}
    if name in own:
        return own[name]
    if reason := _missing(name):
        _warn_once(f"{name} {reason}: sdpa is used instead")
        return sdpa
    return _registered(name)


def _missing(name: str) -> str | None:
    if not torch.cuda.is_available():
        return "needs a GPU"  # flex has a kernel for CPUs too, but with a mask it ends the process (torch 2.13)
    from transformers.utils import import_utils

    installed = getattr(import_utils, f"is_flash_attn_{name[-1]}_available", lambda: name == "flex_attention")
    return None if installed() else "is not installed"


def _registered(name: str) -> Attention:
    """transformers calls a backend with the attention's module; this is the little of one that they read."""
    from transformers import AttentionInterface

    function = AttentionInterface().get_interface(name, sdpa)
    module = nn.Module()
    module.is_causal, module.num_key_value_groups = False, 1  # type: ignore[assignment]
    module.config = SimpleNamespace(_attn_implementation=name)  # type: ignore[assignment]
    flash = name.startswith("flash")

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if flash and mask is not None:
            _warn_once(f"{name} takes no mask of this shape: sdpa is used instead")
            return sdpa(q, k, v, mask)
        if flash and q.dtype == torch.float32:
            kind = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else torch.bfloat16
            return attend(q.to(kind), k.to(kind), v.to(kind), None).to(q.dtype)
        bias = None
        if mask is not None:  # the registry's flex adds a float mask
            bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, torch.finfo(q.dtype).min)
            bias = bias.expand(len(q), 1, q.shape[2], k.shape[2])
        out, _ = function(module, q, k, v, bias, scaling=q.shape[-1] ** -0.5, is_causal=False)
        return out.transpose(1, 2)

    return attend


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)
