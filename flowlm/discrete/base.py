"""A backbone that reads tokens, or the blank that stands where there is none yet.

The codes of V tokens and of one blank go in as a flow language model's clean codes do, and logits of the V tokens come
out: the blank is read and never written. Shapes: B rows, N tokens of a window, V tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn

from flowlm.token_map import Layout, TokenContext
from flowmap.backbone import Backbone
from flowmap.codebook import Codebook, OneHot, in_full
from flowmap.objectives.tokens import TokenStates


class DiscreteMap(nn.Module):
    """codebook: of V + 1 codes, the last of them the blank's."""

    def __init__(self, network: Backbone, codebook: Codebook) -> None:
        super().__init__()
        self.network, self.codebook = network, codebook
        self.code_scale = codebook.size**-0.5 if isinstance(codebook, OneHot) else 1.0  # of one coordinate

    @property
    def blank(self) -> int:
        """V, which stands for no token."""
        return self.codebook.size - 1

    def read(self, ids: Tensor, t: Tensor, context: TokenContext | None = None, **more: Any) -> Tensor:
        """ids: (B, n) from 0 to V; t: (B,) or (B, n); more: mask and cache of the backbone → (B, n, V) in fp32 or better."""
        seen = Layout(self.clean_states(ids), t, t, **more)
        if context is not None:
            seen = context.lay_out(seen, self.clean_states)
        return in_full(
            self.network(seen.x, seen.t, seen.s, mask=seen.mask, cache=seen.cache, clean=seen.clean, places=seen.places)
        )[:, -ids.shape[1] :]

    def clean_states(self, tokens: Tensor, at: Tensor | None = None) -> Tensor:
        return self.codebook.encode(tokens) / self.code_scale


def unknown(states: TokenStates) -> Tensor:
    """(B, N) bool: the tokens that a model has to say something of; the others are known, or stand blank and stay so."""
    if states.scored is not None:
        return states.scored
    context: TokenContext | None = states.context
    return torch.ones_like(states.tokens, dtype=torch.bool) if context is None else ~context.known.at


def token_nll(logits: Tensor, tokens: Tensor, where: Tensor) -> Tensor:
    """−log p(x^l) where asked for, 0 elsewhere: (B, N), in nats. logits: (B, N, V); where: (B, N) bool."""
    targets = tokens.masked_fill(~where, -100)
    return nn.functional.cross_entropy(in_full(logits).transpose(1, 2), targets, ignore_index=-100, reduction="none")
