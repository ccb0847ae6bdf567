"""The two-time map over the codes of a window of tokens, some of which may be known.

    x_t = α_t c + σ_t ε                                          (t = 1 is noise; math.md §1, §4)
    logits of p_{t→s}(x_t) = G_θ(x_t, t, s)                      (+ prior(x_t, t), where asked for)
    X_{t→s}(x_t) = the jump towards Cᵀ p_{t→s}(x_t)

What is known (a prompt, the text around a gap) stands in the window as clean codes, each at time 0 of its own, and has
logits that leave no doubt: no loss, no likelihood and no noise fall on it, whatever objective or sampler asks.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowmap.backbone import Backbone
from flowmap.codebook import Codebook, in_full
from flowmap.maps import FlowMap
from flowmap.path import Path

CERTAIN = 1e9
"""Nats between a known token and any other: finite, so that 0 · log 0 is 0."""


@dataclass(frozen=True)
class Known:
    """tokens: (B, N); at: (B, N) bool, where they are known. The others are not looked at."""

    tokens: Tensor
    at: Tensor

    def __getitem__(self, rows: Any) -> "Known":
        return Known(self.tokens[rows], self.at[rows])

    def to(self, device: torch.device) -> "Known":
        return Known(self.tokens.to(device), self.at.to(device))

    def settle(self, logits: Tensor) -> Tensor:
        """(B, N, V), certain where there is no doubt."""
        sure = -CERTAIN * (torch.arange(logits.shape[-1], device=logits.device) != self.tokens[..., None])
        return torch.where(self.at[..., None], sure.to(logits), logits)


class TokenMap(FlowMap):
    """What objectives on tokens and samplers expect of a model; their context is `Known`, or None where nothing is.

    prior: add the matched filter, what x_t says of a token by itself (math.md §4): right where tokens are independent, and
    where they are not a base that the network has first to unlearn. t_min: the least time at which the filter, which grows as 1/σ², is taken as it stands."""

    network: Backbone
    prior_share: Tensor | None

    def __init__(
        self, network: Backbone, path: Path, codebook: Codebook, data_scale: float, prior: bool = False, t_min: float = 1e-3
    ) -> None:  # fmt: skip
        super().__init__(network, path, data_scale=data_scale, codebook=codebook)
        self.prior, self.t_min = prior, t_min
        self.register_buffer("prior_share", None)

    def ramp_prior(self) -> None:
        """Give the filter a share of itself, 0 until someone fills it: training brings it in so. Never of a saved model."""
        self.prior_share = torch.zeros((), device=self.network.read.weight.device)

    def logits(
        self, x_t: Tensor, t: Tensor, s: Tensor, context: Known | None = None, self_cond: Tensor | None = None
    ) -> Tensor:
        """(B, N, V) in fp32 or better. t, s: (B,), or (B, N) of each token."""
        more: dict[str, Any] = {}
        if self_cond is not None:
            more["self_cond"] = (self_cond / self.data_scale).to(x_t)
        x = self._scaled(x_t, t)
        if context is not None:
            codes = self.codebook.encode(context.tokens).detach()  # what is scored moves codes, not what is read
            x = torch.where(context.at[..., None], (codes / self.data_scale).to(x), x)
            more["clean"] = context.at
        logits = in_full(self.network(x, t, s, **more))
        if self.prior:
            own = self.path.prior_logits(self.codebook, x_t, t.clamp_min(self.t_min))
            logits = logits + (own if self.prior_share is None else self.prior_share * own)
        return logits if context is None else context.settle(logits)
