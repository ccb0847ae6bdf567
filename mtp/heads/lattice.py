"""A first-order chain on a lattice of C candidates a position: exact likelihood, and an exact draw without a loop.

    q_k(b | a) = (1 − ε_k) softmax_{L_k}(U_k + W₂ᵀ W₁[a])[b]   for b ∈ L_k, the C largest of U_k = W f_k(h) + bias
    q_k(v | a) = ε_k softmax_{V∖L_k}(U_k)[v]                   for v ∉ L_k, the escape
    logit ε_k  = log Σ_{v∉L_k} e^{U_k(v)} − log Σ_{b∈L_k} e^{U_k(b)} + δ_k(h)

for k ≥ 2; position 1 is the trunk's, and a = x_{k−1} is any token (DSpark's chain, 2607.05147, cut to a lattice).
L_k and ε_k see h alone. At δ = 0, ε_k is the mass that softmax(U_k) leaves off the lattice: with W₂ = 0 too, as at
the start, this is the independent head, and f_k learns from the escape as δ does. log q is exact, and finite for
each of the V^K blocks, which sum to one. (Where U_k ties at the C-th place within rounding, another batch shape or
precision may choose another L_k.)

Noise drawn once makes x_k a function of x_{k−1}: a map on C + 1 states, the candidates and an escape token o_k that
depends on no a. The block is a composition of K − 1 maps, an associative scan; its law is q.
"""

import torch
from torch import Tensor, nn

from flowmap.rng import Rng
from flowmap.warp import Warp, inverse_cdf
from mtp.heads.base import BlockContext, BlockNLL, Draft, JointHead, block_nll, first_token, row_weights
from mtp.heads.readout import ReadoutHead
from mtp.losses import lattice_nll
from mtp.losses.lattice_nll import Lattice, Rows
from mtp.losses.linear_nll import row_nll


class LatticeChain(ReadoutHead):
    name = "lattice-chain"
    relaxed = JointHead.relaxed  # the escape's law is none of a weighted sum of tokens

    def __init__(
        self,
        hidden_size,
        vocab_size,
        block_size,
        *,
        rank: int = 256,
        projection_width: int | None = None,
        candidates: int = 32,
    ) -> None:
        """rank: ρ of the correction W₂ᵀ W₁; candidates: C, at most V − 1, so that the escape has a token."""
        super().__init__(hidden_size, vocab_size, block_size, projection_width=projection_width, rank=rank)
        if candidates < 1:
            raise ValueError(f"candidates {candidates} must be 1 or more")
        self.candidates = min(candidates, vocab_size - 1)
        self.token = nn.Embedding(vocab_size, rank)
        self.shift = nn.Linear(hidden_size, block_size - 1)
        nn.init.zeros_(self.shift.weight)
        nn.init.zeros_(self.shift.bias)

    def corrections(self, ctx, base, x):
        return self.token(x)

    def nll(self, ctx, targets, mask, weights=None, rng=None) -> BlockNLL:
        weights = row_weights(targets, mask, weights)[:, 1:]
        loss, nll = lattice_nll.weighted_nll(weights.flatten(), self._rows(ctx, targets))
        return block_nll(loss, nll.view(weights.shape), mask)

    def log_prob(self, ctx, x):
        nll = row_nll([ctx.hidden], [ctx.unembedding], x[:, 0].contiguous(), ctx.bias)[:, None]
        if x.shape[1] > 1:
            rest = lattice_nll.row_nll(self._rows(ctx, x))
            nll = torch.cat([nll, rest.view(len(x), x.shape[1] - 1)], 1)
        return -nll

    def _rows(self, ctx: BlockContext, x: Tensor) -> Rows:
        """x: (N, M+1) → positions 2..M+1, N·M rows."""
        (base, correction), _ = self._terms(ctx, x[:, :-1])
        shift = self.shift(ctx.hidden)[:, : x.shape[1] - 1]
        return Rows(
            targets=x[:, 1:].flatten(),
            base=base.flatten(0, 1),
            correction=correction.flatten(0, 1),
            shift=shift.flatten(),
            unembedding=ctx.unembedding,
            readout=self.readout,
            bias=ctx.bias,
            candidates=self.candidates,
        )

    def law(self, ctx, x):
        logits, lattice = self._slots(ctx, x.shape[1])
        on = lattice.on(self.token(x[:, :-1])[:, :, None], self.readout)[:, :, 0]
        return lattice.off(logits[:, 1:]).scatter(-1, lattice.tokens, on)

    def sample(self, ctx, warp, rng=None, noise=None, block_size=None, first=None, until=None) -> Draft:
        """Position by position. The warp applies to the whole of q_k; `Draft.logits` are log q_k."""
        size = self.size(block_size)
        noise = self.uniforms(ctx, rng, noise, size)
        logits, lattice = self._slots(ctx, size)
        log_q, drawn = [logits[:, 0]], [first_token(logits[:, 0], warp, noise[:, 0], first)]
        for k in range(size - 1):
            slot = lattice.slot(k)
            on = slot.on(self.token(drawn[-1][0])[:, None], self.readout)[:, 0]
            log_q.append(slot.off(logits[:, k + 1]).scatter(-1, slot.tokens, on))
            drawn.append(warp.draw(log_q[-1], noise[:, k + 1]))
            if until is not None and until(_draft(drawn, log_q, warp)):
                break
        return _draft(drawn, log_q, warp)

    def sample_one_pass(
        self,
        ctx: BlockContext,
        rng: Rng | None = None,
        block_size: int | None = None,
        *,
        noise: Tensor | None = None,
        first: Tensor | None = None,
        warp: Warp | None = None,
    ) -> Draft:
        """A block whose law is exactly `log_prob`'s, in ⌈log₂(K−1)⌉ gathers after x_1 and no loop over positions.

        rng: for each slot a Gumbel a candidate, the coin of ε_k and the escape token; not `sample`'s draws.
        noise: (N, K, V) Gumbels; the tokens are those of `sample`, one by one. Not supported, NotImplementedError:
        temperature and top-p, which make the escape depend on x_{k−1}; (N, K) uniforms.
        """
        if warp not in (None, Warp()):
            raise NotImplementedError(
                f"{self.name}: one pass draws the escape before the token it follows, and under {warp} the escape "
                "depends on that token; draw at temperature 1 and top-p 1, or with sample"
            )
        if noise is not None and noise.ndim != 3:
            raise NotImplementedError(
                f"{self.name}: one pass needs a number a candidate, not the one a position of noise "
                f"{tuple(noise.shape)}; give rng or Gumbels (N, K, V), or draw with sample"
            )
        size = self.size(block_size)
        if noise is None:
            if rng is None:
                raise ValueError("sample_one_pass needs rng or noise")
            return self.draw_one_pass(ctx, *self.one_pass_noise(ctx, rng, size), first)
        logits, lattice = self._slots(ctx, size)
        off = lattice.off(logits[:, 1:])
        gumbels = noise[:, 1:size].gather(-1, lattice.tokens)
        jump, escape = (off + noise[:, 1:size]).max(-1)
        return self._composed(
            logits, lattice, off, gumbels, jump, escape, first_token(logits[:, 0], Warp(), noise[:, 0], first)
        )

    def one_pass_noise(self, ctx: BlockContext, rng: Rng, size: int) -> tuple[Tensor, Tensor]:
        """All that a draw of `size` tokens takes: (N, 2·size − 1) uniforms, of the first token, the coins and the escapes, and
        (N, size − 1, C) Gumbels of the candidates."""
        rows = len(ctx.hidden)
        uniforms = rng.uniform("one-pass", rows, 2 * size - 1, dtype=torch.float64)
        of_candidates = rng.uniform("one-pass/gumbel", rows, size - 1, self.candidates, dtype=torch.float64)
        gumbels = (-(-of_candidates.log()).log()).float()
        return uniforms.to(ctx.hidden.device), gumbels.to(ctx.hidden.device)

    def draw_one_pass(self, ctx: BlockContext, uniforms: Tensor, gumbels: Tensor, first: Tensor | None = None) -> Draft:
        """The block that `one_pass_noise` gives: a function of tensors alone, to be compiled."""
        size = gumbels.shape[1] + 1
        logits, lattice = self._slots(ctx, size)
        off = lattice.off(logits[:, 1:])
        escaped = (off - lattice.log_escape[..., None]).exp()  # of sum 1, however rare the escape
        coin, escape = uniforms[:, 1:size], inverse_cdf(escaped, uniforms[:, size:])
        # 1 − u > 0: an escape too rare for the generator is never drawn
        jump = torch.where((-coin).log1p() <= lattice.log_escape, torch.inf, -torch.inf)
        return self._composed(
            logits, lattice, off, gumbels, jump, escape, first_token(logits[:, 0], Warp(), uniforms[:, 0], first)
        )

    def _composed(
        self, logits: Tensor, lattice: Lattice, off: Tensor, gumbels: Tensor, jump: Tensor, escape: Tensor,
        first: tuple[Tensor, Tensor],
    ) -> Draft:  # fmt: skip
        """Of slots 2..K: gumbels of their candidates, the value of jumping off the lattice, (N, K−1), and where to; first: x_1 and
        its log q."""
        token, told = first
        states = torch.cat([lattice.tokens, escape[..., None]], -1)
        on = lattice.on(self.token(_previous(token, states)), self.readout)
        jump = jump[..., None, None].expand(*states.shape, 1)
        reached = compose(torch.cat([on + gumbels[:, :, None], jump], -1).argmax(-1))[..., 0]
        came_from = nn.functional.pad(reached, (1, 0))[:, :-1]
        row = on.take_along_dim(came_from[..., None, None], 2)[:, :, 0]
        log_q = off.scatter_(-1, lattice.tokens, row)
        rest = states.take_along_dim(reached[..., None], -1)
        told = torch.cat([told[:, None], log_q.gather(-1, rest)[..., 0]], 1)
        tokens = torch.cat([token[:, None], rest[..., 0]], 1)
        return Draft(tokens, told, [logits[:, 0], *log_q.unbind(1)], Warp())

    def _slots(self, ctx: BlockContext, size: int) -> tuple[Tensor, Lattice]:
        """U_1..U_K, (N, K, V) from one product, and the lattices of positions 2..K."""
        base = self.projection(ctx.hidden, size - 1)
        logits = nn.functional.linear(torch.cat([ctx.hidden[:, None], base], 1), ctx.unembedding, ctx.bias).float()
        return logits, Lattice.of(logits[:, 1:], self.shift(ctx.hidden)[:, : size - 1], self.candidates)


def compose(maps: Tensor) -> Tensor:
    """maps: (N, M, S), M functions on S states → m_1, m_2∘m_1, …, m_M∘…∘m_1, by doubling (Hillis and Steele 1986)."""
    reach = 1
    while reach < maps.shape[1]:
        maps = torch.cat([maps[:, :reach], maps[:, reach:].gather(-1, maps[:, :-reach])], 1)
        reach *= 2
    return maps


def _previous(token: Tensor, states: Tensor) -> Tensor:
    """What slots 2..K may follow, (N, K−1, C+1): x_1 in every state, then the slot before's candidates and escape."""
    return torch.cat([token[:, None, None].expand_as(states[:, :1]), states[:, :-1]], 1)


def _draft(drawn: list[tuple[Tensor, Tensor]], laws: list[Tensor], warp: Warp) -> Draft:
    """Of the tokens drawn so far and their log q."""
    tokens, told = (torch.stack(column, 1) for column in zip(*drawn, strict=True))
    return Draft(tokens, told, laws, warp)
