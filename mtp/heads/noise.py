"""A head that is told the noise its tokens are drawn with (C-PTP, 2512.21323): all positions in one pass.

    x_k = Pick(u_k, P_k(h, x_1, u_<k)),    u_k ~ U[0, 1),    Pick(u, p) the inverse CDF of p at u

If tokens are picked so, u_2..u_{k−1} say what x_2..x_{k−1} are, and P_k can be p(· | x_<k) without having read them:
then, and for any trunk, the block is a joint draw. Slot k holds [f_k(h); x_1 or features of u_{k−1}] and sees those before
it; its state gives a_k, and logits_k = W f_k(h) + W₂ᵀ a_k (W₂ zero at the start: the independent head).

    q(x_2..x_K | h, x_1) = ∫ Π_k 1[Pick(u_k, P_k(u_<k)) = x_k] du = E_v Π_k P_k(x_k | u_<k),

with u_k at v_k ~ U[0, 1) of the head's *own* slice of x_k. Given the noise P_k is exact, q is a mean over it: −Σ log P_k
of one draw of v bounds −log q from above in mean, for every beginning of the block, and is it where P_k is one law
throughout each slice. With u in the trunk's slices the same sum is the training loss and no bound on q.

A draft's log_q and conditional are those of P_k. Verification may use them: x_k and what it leaves of u_k are drawn from
P_k × U[0, 1), the target's are p × U[0, 1), and the ratios and residuals of the pairs are those of the tokens.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flowmap.draws import Estimate, every_draw, rows_of
from flowmap.rng import Rng
from flowmap.warp import Warp
from mtp.decoding.slices import left_over, within
from mtp.heads.base import BlockContext, BlockNLL, Draft, JointHead, block_nll, first_token, row_weights
from mtp.heads.block_chain import Block
from mtp.heads.readout import PositionProjection, embed
from mtp.losses.linear_nll import chunk_rows, row_nll, weighted_nll
from mtp.losses.text_noise import text_noise


class NoiseHead(JointHead):
    """Learns what the trunk's own noise says: the text should be the trunk's (`leaplm regenerate`)."""

    name, exact = "noise", False
    learns_past: ClassVar[bool] = True

    def __init__(
        self,
        hidden_size,
        vocab_size,
        block_size,
        *,
        embedding_size: int | None = None,
        width: int | None = None,
        num_layers: int = 2,
        num_heads: int | None = None,
        rank: int = 256,
        projection_width: int | None = None,
        frequencies: int = 12,
        own: int = 0,
    ) -> None:
        """width: of the small blocks, default hidden_size; rank: ρ of the correction; frequencies: features cos, sin of
        2^j π u, j below it. own: 1 to train with noise in the head's own slices, which needs no trunk and suits any
        text (the gradient leaves out that slices move)."""
        super().__init__(hidden_size, vocab_size, block_size)
        width = width or hidden_size
        if num_heads is None:
            num_heads = next(n for n in range(max(1, width // 64), 0, -1) if width % n == 0)
        if width % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide the noise head's width {width}")
        self.own, self.frequencies = own, frequencies
        self.projection = PositionProjection(hidden_size, block_size - 1, projection_width or 2 * hidden_size)
        self.readout = nn.Parameter(torch.zeros(vocab_size, rank))
        self.token_norm = nn.RMSNorm(embedding_size or hidden_size)
        self.from_token = nn.Linear(embedding_size or hidden_size, width)
        self.from_noise = nn.Linear(2 * frequencies, width)
        self.from_hidden = nn.Linear(hidden_size, width, bias=False)
        self.position = nn.Parameter(torch.randn(block_size - 1, width) * 0.02)
        self.layers = nn.ModuleList(Block(width, num_heads) for _ in range(num_layers))
        self.out = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, rank))

    def nll(self, ctx, targets, mask, weights=None, rng: Rng | None = None) -> BlockNLL:
        """rng: addressed by anchor. In training −log P_k(x_k | u_<k) with u in the trunk's slices, of positions whose
        noise the window's states tell; with `own`, and in evaluation, in the head's: a bound."""
        if rng is None:
            raise ValueError(f"{self.name}: the loss is a mean over noise: nll needs rng")
        share = rng.uniform("noise", len(targets), targets.shape[1] - 2).to(targets.device)
        if self.training and not self.own and len(targets) and share.shape[1]:
            noise, known = text_noise(ctx, share)
            mask = mask & nn.functional.pad(known, (2, 0), value=True)
        else:
            noise = self.own_noise(ctx, targets, share)
        weights = row_weights(targets, mask, weights)[:, 1:]
        inputs = self._inputs(ctx, targets[:, 0], noise)
        loss, nll = weighted_nll(
            [i.flatten(0, 1) for i in inputs],
            [ctx.unembedding, self.readout],
            targets[:, 1:].flatten(),
            weights.flatten(),
            ctx.bias,
        )
        return block_nll(loss, nll.view(weights.shape), mask)

    def laws(self, ctx: BlockContext, first: Tensor, noise: Tensor) -> Tensor:
        """first: (N,), x_1; noise: (N, M−1), u_2..u_M → logits of P_2..P_{M+1}, (N, M, V), in one pass."""
        return self._logits(ctx, *self._inputs(ctx, first, noise))

    @torch.no_grad()
    def own_noise(self, ctx: BlockContext, x: Tensor, share: Tensor) -> Tensor:
        """u_2..u_{M+1} at `share` (N, M) of the slices that P_2..P_{M+1} give x_2.. of x (N, ≥ M+1), (N, M). M steps."""
        made = []
        for rows in torch.arange(len(x), device=x.device).split(chunk_rows(self.vocab_size)):
            noise: list[Tensor] = []

            def place(k: int, logits: Tensor, rows: Tensor = rows, noise: list[Tensor] = noise) -> Tensor:
                noise.append(within(logits.float().softmax(-1), x[rows, k], share[rows, k - 1]))
                return noise[-1]

            if share.shape[1]:
                self._walk(ctx.part(rows), x[rows, 0], share.shape[1] + 1, place)
                made.append(torch.stack(noise, 1))
        return torch.cat(made) if made else share.double()

    def sample(self, ctx, warp, rng=None, noise=None, block_size=None, first=None) -> Draft:
        """One pass with uniforms and the law as it stands. Under a warp, or with Gumbels, a token is not where its u
        would have P_k pick it: positions then follow one another, and each is told the point of the token's slice in P_k
        that is as far along as the noise left over, so that the draw is of P_k warped, whatever the noise."""
        size = self.size(block_size)
        drawn, first_logits = self.uniforms(ctx, rng, noise, size), ctx.first_logits()
        token, told = first_token(first_logits, warp, drawn[:, 0], first)
        logits, tokens, log_q = [first_logits], [token], [told]

        def choose(k: int, logits_k: Tensor) -> Tensor:
            token, log_q_k = warp.draw(logits_k, drawn[:, k])
            logits.append(logits_k)
            tokens.append(token)
            log_q.append(log_q_k)
            return within(logits_k.float().softmax(-1), token, left_over(warp.log_prob(logits_k), drawn[:, k], token))

        if size > 1 and (warp != Warp() or drawn.ndim == 3):
            self._walk(ctx, token, size, choose)
        elif size > 1:
            rest = self.laws(ctx, token, drawn[:, 1 : size - 1])
            picked, log_rest = warp.draw(rest, drawn[:, 1:size])
            tokens += picked.unbind(1)
            log_q += log_rest.unbind(1)
            logits += rest.unbind(1)
        return Draft(torch.stack(tokens, 1), torch.stack(log_q, 1), logits, warp)

    @torch.no_grad()
    def estimate_prefixes(self, ctx: BlockContext, x: Tensor, rng: Rng, draws: int) -> Estimate:
        """log p(x_1 | h) + log 1/draws Σ_v Π_{j=2}^k P_j(x_j | u_<j(v)); positions 1 and 2 are exact."""
        rows, draw = every_draw(len(x), draws, x.device)
        nats = []
        for row, n in zip(*(i.split(chunk_rows(self.vocab_size)) for i in (rows, draw)), strict=True):
            share = rows_of(rng, row, n).uniform("noise", len(row), max(0, x.shape[1] - 2)).to(x.device)
            nats.append(self._one_draw(ctx.part(row), x[row], share).double())
        return Estimate.of(-torch.cat(nats).view(len(x), draws, -1).cumsum(2))

    def _one_draw(self, ctx: BlockContext, x: Tensor, share: Tensor) -> Tensor:
        nll = row_nll([ctx.hidden], [ctx.unembedding], x[:, 0].contiguous(), ctx.bias)[:, None]
        if x.shape[1] == 1:
            return nll
        inputs = self._inputs(ctx, x[:, 0], self.own_noise(ctx, x, share))
        tables = [ctx.unembedding, self.readout]
        rest = row_nll([i.flatten(0, 1) for i in inputs], tables, x[:, 1:].flatten(), ctx.bias)
        return torch.cat([nll, rest.view(len(x), -1)], 1)

    def _inputs(self, ctx: BlockContext, first: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """f_k(h) (N, M, d) and a_k (N, M, ρ) of positions 2..M+1."""
        base = self.projection(ctx.hidden, noise.shape[1] + 1)
        told = torch.cat([self._token(ctx, first)[:, None], self._noise(noise)], 1)
        return base, self._advance(base, told, None)[0]

    def _logits(self, ctx: BlockContext, base: Tensor, correction: Tensor) -> Tensor:
        linear = nn.functional.linear
        return linear(base, ctx.unembedding, ctx.bias) + linear(correction, self.readout)

    def _walk(self, ctx: BlockContext, first: Tensor, size: int, choose: Callable[[int, Tensor], Tensor]) -> None:
        """choose: position k from 1 to size − 1 and its logits (N, V) → u there (N,), which later positions are told."""
        base, told, state = self.projection(ctx.hidden, size - 1), self._token(ctx, first), None
        for k in range(1, size):
            here = base[:, k - 1 : k]
            correction, state = self._advance(here, told[:, None], state)
            told = self._noise(choose(k, self._logits(ctx, here, correction)[:, 0]))

    def _token(self, ctx: BlockContext, token: Tensor) -> Tensor:
        return self.from_token(self.token_norm(embed(token, ctx.embedding)))

    def _noise(self, noise: Tensor) -> Tensor:
        """(...) → (..., width). The lowest frequency is half a turn, so that 0 and 1 stay apart."""
        rate = math.pi * 2.0 ** torch.arange(self.frequencies, device=noise.device, dtype=torch.float64)
        angle = noise.double()[..., None] * rate
        return self.from_noise(torch.cat([angle.cos(), angle.sin()], -1).to(self.position.dtype))

    def _advance(self, base: Tensor, told: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The next M slots: base (N, M, d), told (N, M, width) → a (N, M, ρ) and the state after them."""
        place, caches = state or (0, [None] * len(self.layers))
        z, kept = told + self.from_hidden(base) + self.position[place : place + told.shape[1]], []
        for layer, cache in zip(self.layers, caches, strict=True):
            z, cache = layer(z, cache)
            kept.append(cache)
        return self.out(z), (place + told.shape[1], kept)
