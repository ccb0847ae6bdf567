"""The few-step part of a gradient, without what goes against the denoiser's.

    g = g_d + g_f − min(0, ⟨g_d, g_f⟩)/‖g_d‖²·g_d                              (one side of 2001.06782)

A few-step map is no better than the denoiser it is made of. Both gradients are sums over ranks and micro-batches before
they are compared, so that slices change nothing.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from flowmap.objectives.base import Loss


class Projection:
    """Between `add` for each micro-batch and `settle`, which leaves the sum in .grad, no gradient is there."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.parts: list[Tensor] = []

    def add(self, loss: Loss) -> None:
        """loss.few_step: the part of loss.sum that gives way."""
        if loss.few_step is None:
            raise ValueError("flow.project needs an objective with a few-step part: kl-psd, esd, lsd or categorical")
        found = [self._flat(loss.sum - loss.few_step), self._flat(loss.few_step)]
        self.parts = [old + new for old, new in zip(self.parts, found, strict=True)] if self.parts else found

    def settle(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """reduce: the sum over ranks."""
        local, few = map(reduce, self.parts)
        against = (local @ few).clamp_max(0) / (local @ local).clamp_min(1e-30)
        whole = local + few - against * local
        for parameter, part in zip(self.parameters, whole.split([p.numel() for p in self.parameters]), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)
        self.parts = []

    def _flat(self, total: Tensor) -> Tensor:
        if not total.requires_grad:
            return torch.zeros(sum(p.numel() for p in self.parameters), device=total.device)
        found = torch.autograd.grad(total, self.parameters, retain_graph=True, allow_unused=True)
        pairs = zip(found, self.parameters, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten().float() for g, p in pairs])
