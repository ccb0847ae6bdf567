"""Medusa's heads (2401.10774): one residual layer and an output table of its own for every position.

    q = Π_k softmax((W + Δ_k) (h + SiLU(W_k h + b_k)))[x_k]

The paper starts each table as a copy of the trunk's; so here Δ_k = 0 and W_k = 0. K−1 tables of V × d are most of a
small model's weights: what they buy over one shared table is what the comparison with `independent` shows.
"""

import torch
from torch import Tensor, nn

from mtp.heads.base import BlockContext, BlockNLL, Draft, JointHead, block_nll, first_token, row_weights
from mtp.losses.linear_nll import row_nll, weighted_nll


class MedusaHead(JointHead):
    name = "medusa"

    def __init__(self, hidden_size: int, vocab_size: int, block_size: int) -> None:
        super().__init__(hidden_size, vocab_size, block_size)
        self.weight = nn.Parameter(torch.zeros(block_size - 1, hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.zeros(block_size - 1, 1, hidden_size))
        self.tables = nn.Parameter(torch.zeros(block_size - 1, vocab_size, hidden_size))

    def nll(self, ctx, targets, mask, weights=None, rng=None) -> BlockNLL:
        weights = row_weights(targets, mask, weights)
        inputs = self._inputs(ctx, targets.shape[1] - 1)
        columns: list[torch.Tensor] = []
        loss = inputs.new_zeros((), dtype=torch.float32)
        for k, x in enumerate(inputs.unbind(0), 1):
            part, nll = weighted_nll(
                [x, x], [ctx.unembedding, self.tables[k - 1]], targets[:, k].contiguous(), weights[:, k], ctx.bias
            )
            loss, columns = loss + part, [*columns, nll]
        return block_nll(loss, torch.stack(columns, 1), mask)

    def log_prob(self, ctx, x):
        columns = [row_nll([ctx.hidden], [ctx.unembedding], x[:, 0].contiguous(), ctx.bias)]
        for k, f in enumerate(self._inputs(ctx, x.shape[1] - 1).unbind(0), 1):
            columns.append(row_nll([f, f], [ctx.unembedding, self.tables[k - 1]], x[:, k].contiguous(), ctx.bias))
        return -torch.stack(columns, 1)

    def law(self, ctx, x):
        return torch.stack(self._logits(ctx, x.shape[1])[1:], 1).float().log_softmax(-1)

    def sample(self, ctx, warp, rng=None, noise=None, block_size=None, first=None) -> Draft:
        size = self.size(block_size)
        noise = self.uniforms(ctx, rng, noise, size)
        logits = self._logits(ctx, size)
        drawn = [first_token(logits[0], warp, noise[:, 0], first)]
        drawn += [warp.draw(logits[k], noise[:, k]) for k in range(1, size)]
        tokens, log_q = (torch.stack(parts, 1) for parts in zip(*drawn, strict=True))
        return Draft(tokens, log_q, logits, warp)

    def marginal(self, ctx):
        return torch.stack(self._logits(ctx, self.block_size), 1).float().log_softmax(-1)

    def mode(self, ctx):
        """Exact: the positions are independent."""
        return self.marginal(ctx).argmax(-1)

    def _inputs(self, ctx: BlockContext, count: int) -> Tensor:
        """(M, N, d): h + SiLU(W_k h + b_k)."""
        inner = torch.matmul(ctx.hidden, self.weight[:count]) + self.bias[:count]
        return ctx.hidden + nn.functional.silu(inner)

    def _logits(self, ctx: BlockContext, size: int) -> list[Tensor]:
        inputs = self._inputs(ctx, size - 1)
        base = nn.functional.linear(inputs, ctx.unembedding, ctx.bias)
        own = torch.bmm(inputs, self.tables[: size - 1].transpose(1, 2))
        return [ctx.first_logits(), *(base + own).unbind(0)]
