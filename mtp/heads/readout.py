"""Heads whose logits at position k ≥ 2 are a sum of two linear readouts,

    logits_k = W f_k(h) + W₂ᵀ a_k(h, x_<k),      W the trunk's unembedding, W₂ of rank ρ.

An independent head has no second term; the chains differ in a_k alone. W f_k(h) is one product for
all positions, computed once per block; what is left for each drawn token is a_k and its low-rank
readout.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mtp.heads.base import BlockContext, BlockNLL, Draft, JointHead, block_nll, first_token, row_weights
from mtp.losses.linear_nll import row_nll, weighted_nll


class ReadoutHead(JointHead):
    """Without more, the independent head. A chain gives `corrections`, `start` and `step`."""

    stops_early = True

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        block_size: int,
        *,
        projection_width: int | None = None,
        rank: int = 0,
        tied: bool = False,
    ) -> None:
        """projection_width: inner width of f_k, default 2·hidden_size. rank: ρ, 0 for no correction. tied: W₂ᵀ = W P with
        P (d, ρ) learned, so that corrections speak of words as the trunk does, instead of a table of their own."""
        super().__init__(hidden_size, vocab_size, block_size)
        self.projection: nn.Module = PositionProjection(
            hidden_size, block_size - 1, projection_width or 2 * hidden_size
        )
        self.tied = tied
        if rank:
            # zero at the start, so that every chain begins as the independent head
            self.readout = nn.Parameter(torch.zeros(hidden_size if tied else vocab_size, rank))
            self._table = Kept()

    def corrections(self, ctx: BlockContext, base: Tensor, x: Tensor) -> Tensor | None:
        """All positions at once: base (N, M, d) of positions 2..M+1 and x = x_1..x_M (N, M)
        → a_2..a_{M+1}, (N, M, ρ)."""
        return None

    def start(self, ctx: BlockContext, base: Tensor) -> Any:
        """The state of `step` before x_1."""
        return None

    def step(self, ctx: BlockContext, base_k: Tensor, state: Any, token: Tensor) -> tuple[Tensor | None, Any]:
        """The same, one position at a time: base_k (N, d) and token x_{k−1}, (N,) or soft (N, V) → a_k (N, ρ), next
        state."""
        return None, None

    def nll(self, ctx, targets, mask, weights=None, rng=None) -> BlockNLL:
        return _summed(*self._terms(ctx, targets[:, :-1]), ctx, targets, mask, weights)

    def base_nll(self, ctx, targets, mask, weights=None) -> BlockNLL:
        if not hasattr(self, "readout"):
            return super().base_nll(ctx, targets, mask, weights)
        base = self.projection(ctx.hidden, targets.shape[1] - 1)
        return _summed([base], [ctx.unembedding], ctx, targets, mask, weights)

    def log_prob(self, ctx, x):
        nll = row_nll([ctx.hidden], [ctx.unembedding], x[:, 0].contiguous(), ctx.bias)[:, None]
        if x.shape[1] > 1:
            inputs, tables = self._terms(ctx, x[:, :-1])
            rest = row_nll([i.flatten(0, 1) for i in inputs], tables, x[:, 1:].flatten(), ctx.bias)
            nll = torch.cat([nll, rest.view(len(x), x.shape[1] - 1)], 1)
        return -nll

    def law(self, ctx, x):
        inputs, tables = self._terms(ctx, x[:, :-1])
        parts = [nn.functional.linear(i, table).float() for i, table in zip(inputs, tables, strict=True)]
        logits = sum(parts[1:], parts[0])
        return (logits if ctx.bias is None else logits + ctx.bias).log_softmax(-1)

    def _terms(self, ctx: BlockContext, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Readout inputs (N, M, F_i) and tables (V, F_i) of positions 2..M+1, given x_1..x_M."""
        base = self.projection(ctx.hidden, x.shape[1])
        correction = self.corrections(ctx, base, x)
        if correction is None:
            return [base], [ctx.unembedding]
        if self.tied:
            return [base + nn.functional.linear(correction, self.readout)], [ctx.unembedding]
        return [base, correction], [ctx.unembedding, self.readout]

    def sample(self, ctx, warp, rng=None, noise=None, block_size=None, first=None, until=None) -> Draft:
        size = self.size(block_size)
        uniform = self.uniforms(ctx, rng, noise, size)
        logits: list[Tensor] = []
        tokens: list[Tensor] = []
        log_q: list[Tensor] = []

        def choose(k: int, logits_k: Tensor) -> Tensor | None:
            token, log_q_k = first_token(logits_k, warp, uniform[:, k], None if k else first)
            logits.append(logits_k)
            tokens.append(token)
            log_q.append(log_q_k)
            ended = k > 0 and until is not None and until(drawn())
            return None if ended else token

        def drawn() -> Draft:
            return Draft(torch.stack(tokens, 1), torch.stack(log_q, 1), logits, warp)

        self._walk(ctx, size, choose)
        return drawn()

    def relaxed(self, ctx, choose, first, block_size=None) -> Tensor:
        drawn = [nn.functional.one_hot(first, self.vocab_size).to(ctx.embedding.dtype)]

        def pick(k: int, logits_k: Tensor) -> Tensor:
            if k > 0:
                drawn.append(choose(k, logits_k.float().log_softmax(-1)))
            return drawn[-1]

        self._walk(ctx, self.size(block_size), pick)
        return torch.stack(drawn, 1)

    def table(self, ctx: BlockContext) -> Tensor | None:
        """W₂ᵀ, (V, ρ). A tied one is multiplied out once and kept, until a weight changes."""
        if not hasattr(self, "readout") or not self.tied:
            return getattr(self, "readout", None)
        if torch.is_grad_enabled():
            return ctx.unembedding @ self.readout
        return self._table(lambda: ctx.unembedding @ self.readout, ctx.unembedding, self.readout)

    def _walk(self, ctx: BlockContext, size: int, choose: Callable[[int, Tensor], Tensor | None]) -> None:
        """choose: position k from 0 and its logits (N, V) → the token that later positions are told, (N,) or soft; None
        ends the walk."""
        base = self.projection(ctx.hidden, size - 1)
        # one product for all positions: W, the largest thing a small batch reads, is read once
        stacked = torch.cat([ctx.hidden[:, None], base], 1).transpose(0, 1)
        base_logits = nn.functional.linear(stacked, ctx.unembedding, ctx.bias)
        state, table = self.start(ctx, base), self.table(ctx)
        token = choose(0, base_logits[0])
        for k in range(1, size):
            if token is None:
                return
            logits_k = base_logits[k]
            correction, state = self.step(ctx, base[:, k - 1], state, token)
            if correction is not None and table is not None:
                logits_k = torch.addmm(logits_k, correction, table.T)
            token = choose(k, logits_k)


def embed(x: Tensor, table: Tensor) -> Tensor:
    """Rows of a table (V, e): x tokens (...), or soft ones (..., V), weights over the rows → (..., e)."""
    return x.to(table.dtype) @ table if x.is_floating_point() else nn.functional.embedding(x, table)


def _summed(
    inputs: list[Tensor], tables: list[Tensor], ctx: BlockContext, targets: Tensor, mask: Tensor, weights: Tensor | None
) -> BlockNLL:
    """Of the law that these readouts give positions 2..K."""
    weights = row_weights(targets, mask, weights)
    loss, nll = weighted_nll(
        [x.flatten(0, 1) for x in inputs], tables, targets[:, 1:].flatten(), weights[:, 1:].flatten(), ctx.bias
    )
    return block_nll(loss, nll.view(mask[:, 1:].shape), mask)


class Kept:
    """A table made of weights, kept until one of them changes."""

    def __init__(self) -> None:
        self._made: tuple[Any, Tensor] | None = None

    def __call__(self, make: Callable[[], Tensor], *weights: Tensor) -> Tensor:
        made_of = [(id(part), part._version, part.dtype, part.device) for part in weights]
        if self._made is None or self._made[0] != made_of:
            self._made = (made_of, make())
        return self._made[1]


class PositionProjection(nn.Module):
    """f_k(h) = h + W_k^down SiLU(W_k^up norm(h)), one residual MLP for each of K−1 positions.

    (Medusa's residual block, 2401.10774, with an inner width of its own.) W^down is zero at the
    start: every position begins as the trunk's own next-token prediction.
    """

    def __init__(self, hidden_size: int, num_positions: int, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden_size)
        self.up = nn.Parameter(torch.randn(num_positions, hidden_size, width) * hidden_size**-0.5)
        self.down = nn.Parameter(torch.zeros(num_positions, width, hidden_size))

    def forward(self, hidden: Tensor, num_positions: int) -> Tensor:
        """(N, d) → (N, M, d): f_2..f_{M+1}."""
        up = torch.matmul(self.norm(hidden), self.up[:num_positions])
        return hidden[:, None] + torch.bmm(nn.functional.silu(up), self.down[:num_positions]).transpose(0, 1)


class SharedProjection(nn.Module):
    """f_k(h) = h + W_k^down ReLU(W^up norm(h)), all positions from one hidden layer (1811.03115)."""

    def __init__(self, hidden_size: int, num_positions: int, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden_size)
        self.up = nn.Linear(hidden_size, width)
        self.down = nn.Parameter(torch.zeros(num_positions, width, hidden_size))

    def forward(self, hidden: Tensor, num_positions: int) -> Tensor:
        """(N, d) → (N, M, d): f_2..f_{M+1}."""
        inner = nn.functional.relu(self.up(self.norm(hidden)))
        return hidden[:, None] + torch.matmul(inner, self.down[:num_positions]).transpose(0, 1)
