"""The map over codes that have no table: the network says where x_t heads itself, and reads tokens in a mode of its own (ELF,
2605.10938).

    g_{t→s}(x_t) = the last d numbers of G_θ(x_t, t, s)              to denoise, t > 0
    logits of p(x | x̂) = the first V numbers of G_θ(x̂, 0, 0)         to decode: the time 0, which no noisy state has, says so

One network does both. The samplers walk by g alone down to x̂ at time 0, and tokens are read there in one more call.
"""

from typing import Any

import torch
from torch import Tensor

from flowlm.token_map import TokenContext, TokenMap


class LatentMap(TokenMap):
    """codebook: `ContextualCodes`. The network writes V + d numbers a state."""

    finishes = True

    def endpoint(self, x_t: Tensor, t: Tensor, s: Tensor, context: TokenContext | None = None, **more: Any) -> Tensor:
        """g, (B, N, d); of what is known its code."""
        g = self.answer(x_t, t, s, context, more.get("self_cond"))[..., self.codebook.size :]
        if context is None:
            return g
        known = context.known
        codes = self.codebook.encode(known.tokens, known.at)
        return torch.where(known.at[..., None], codes.to(g), g)

    def logits(
        self, x_t: Tensor, t: Tensor, s: Tensor, context: TokenContext | None = None, self_cond: Tensor | None = None
    ) -> Tensor:
        """(B, N, V), of x_t taken for finished: the times are not looked at, nor is an estimate."""
        now = torch.zeros(len(x_t), device=x_t.device)
        logits = self.answer(x_t, now, now, context, None)[..., : self.codebook.size]
        return logits if context is None else context.settle(logits)

    def clean_states(self, tokens: Tensor, at: Tensor | None = None) -> Tensor:
        return self.codebook.encode(tokens, at) / self.data_scale
