"""The baseline: K positions drawn one by one from their own softmaxes, blind to each other.

    q = Π_k softmax(W f_k(h))[x_k]      (2404.19737; Medusa 2401.10774)

Its best possible KL from the truth is the total correlation ΣH(x_k) − H(x_1..x_K).
"""

import torch
from torch import nn

from mtp.heads.readout import ReadoutHead


class IndependentHead(ReadoutHead):
    name = "independent"

    def __init__(self, hidden_size, vocab_size, block_size, *, projection_width: int | None = None) -> None:
        super().__init__(hidden_size, vocab_size, block_size, projection_width=projection_width)

    def marginal(self, ctx):
        base = self.projection(ctx.hidden, self.block_size - 1)
        rest = nn.functional.linear(base, ctx.unembedding, ctx.bias)
        return torch.cat([ctx.first_logits()[:, None], rest], 1).float().log_softmax(-1)

    def mode(self, ctx):
        """Exact: the positions are independent."""
        return self.marginal(ctx).argmax(-1)
