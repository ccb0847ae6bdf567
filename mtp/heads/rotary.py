"""Rotary position embeddings (2104.09864), made anew at each call: a table kept beside the weights is not filled when
they are loaded."""

import torch
from torch import Tensor


def rotary(places: Tensor, size: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """places: (…,) → cosines and sines (…, size), each half alike, as Llama has them."""
    speed = theta ** (-torch.arange(0, size, 2, device=places.device) / size)
    angle = torch.cat([places[..., None] * speed] * 2, -1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, places: Tensor) -> Tensor:
    """x: (…, heads, size), at places (…,)."""
    return turn(x, *rotary(places, x.shape[-1]))


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: (…, heads, size), by cosines and sines (…, size)."""
    cos, sin = (part[..., None, :].to(x.dtype) for part in (cos, sin))
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin
