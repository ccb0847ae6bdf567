"""The baselines: K positions drawn one by one from their own softmaxes, blind to each other.

    q = Π_k softmax(W f_k(h))[x_k]      (2404.19737)

Its best possible KL from the truth is the total correlation ΣH(x_k) − H(x_1..x_K). `blockwise` is Stern's form
(1811.03115): one hidden layer for all positions, each reading all of it; Medusa's has tables of its own (medusa.py).
"""

import torch
from torch import nn

from mtp.heads.readout import ReadoutHead, SharedProjection


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


class BlockwiseHead(IndependentHead):
    name = "blockwise"

    def __init__(self, hidden_size, vocab_size, block_size, *, projection_width: int | None = None) -> None:
        """projection_width: of the one hidden layer, default 2·hidden_size a position."""
        super().__init__(hidden_size, vocab_size, block_size, projection_width=1)
        width = projection_width or 2 * hidden_size * (block_size - 1)
        self.projection = SharedProjection(hidden_size, block_size - 1, width)
