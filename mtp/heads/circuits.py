"""Latent heads: K−1 softmaxes for each of r states of a latent, summed by a circuit (2511.11346). All exact.

    mixture             Σ_z π_z Π_k φ_{k,z}(x_k), a CP decomposition of rank r                (2410.17765)
    hidden-markov       Σ_z π_{z_2} φ_{2,z_2}(x_2) Π_{k>2} A_k[z_{k−1}, z_k] φ_{k,z_k}(x_k)
    tree                halves of the block joined by r sums of r products, all the way up
    mixture-of-chains   a mixture whose φ_{k,z} sees x_{k−1} too, through one low-rank table

φ_{k,z} = softmax(W f_{k,z}(h, x_1)); weights and transitions are functions of (h, x_1). What later positions say is
summed out by setting their leaves to one, so that q(x_k | x_<k) is a quotient of two sums. A latent of r states carries
at most log r nats across a cut: on m bijective pairs with the right first word validity is at most r/m.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from mtp.heads.base import BlockContext, BlockNLL, Draft, JointHead, block_nll, first_token, row_weights
from mtp.heads.readout import PositionProjection
from mtp.losses.linear_nll import row_nll


class CircuitHead(JointHead):
    """Leaves, and what is common to the circuits; M = K−1 modelled positions, r components."""

    chained: ClassVar[bool] = False

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        block_size: int,
        *,
        components: int = 8,
        rank: int = 256,
        projection_width: int | None = None,
        embedding_size: int | None = None,
    ) -> None:
        """components: r. rank: of the chained form's correction. projection_width: inner width of each f_{k,z}, default
        hidden_size. embedding_size: width of the trunk's embedding, default hidden_size."""
        super().__init__(hidden_size, vocab_size, block_size)
        if components < 1:
            raise ValueError(f"components {components} must be 1 or above")
        self.components, self.modelled = components, block_size - 1
        self.token_norm = nn.RMSNorm(embedding_size or hidden_size)
        self.from_first = nn.Linear(embedding_size or hidden_size, hidden_size, bias=False)
        self.projection = PositionProjection(hidden_size, self.modelled * components, projection_width or hidden_size)
        self.weigh = nn.Linear(hidden_size, self.num_weights())
        if self.chained:
            self.token = nn.Embedding(vocab_size, rank)
            self.readout = nn.Parameter(torch.zeros(vocab_size, rank))

    def num_weights(self) -> int:
        """Numbers that the circuit's sums take."""
        raise NotImplementedError

    def combine(self, weights: Tensor, leaves: Tensor) -> Tensor:
        """weights (…, num_weights), unnormalised logs; leaves (…, M, r), log φ → log of the circuit (…)."""
        raise NotImplementedError

    def nll(self, ctx, targets, mask, weights=None, rng=None) -> BlockNLL:
        weights = row_weights(targets, mask, weights)
        nll = -self._modelled(ctx, targets)
        # a masked target may be anything, its nll too
        loss = torch.where(mask[:, 1:], nll, 0.0).mul(weights[:, 1:]).sum()
        return block_nll(loss, nll, mask)

    def log_prob(self, ctx, x):
        first = -row_nll([ctx.hidden], [ctx.unembedding], x[:, 0].contiguous(), ctx.bias)[:, None]
        return first if x.shape[1] == 1 else torch.cat([first, self._modelled(ctx, x)], 1)

    def law(self, ctx, x):
        count = x.shape[1] - 1
        log_phi = nn.functional.linear(self._inputs(ctx, x[:, 0], count), ctx.unembedding, ctx.bias)  # (N, M', r, V)
        if self.chained:
            log_phi = log_phi + nn.functional.linear(self.token(x[:, :-1]), self.readout)[:, :, None]
        log_phi, weights = log_phi.float().log_softmax(-1), self._weights(ctx, x[:, 0])
        told = x[:, 1:, None, None].expand(-1, -1, self.components, 1)
        leaves = nn.functional.pad(log_phi.gather(-1, told)[..., 0], (0, 0, 0, self.modelled - count))
        place = torch.arange(self.modelled, device=x.device)[:, None]
        posterior = [self._posterior(weights, leaves * (place < k), k) for k in range(count)]
        return (torch.stack(posterior, 1)[..., None] + log_phi).logsumexp(-2)

    def sample(self, ctx, warp, rng=None, noise=None, block_size=None, first=None) -> Draft:
        size = self.size(block_size)
        noise = self.uniforms(ctx, rng, noise, size)
        logits = [ctx.first_logits()]
        first, log_first = first_token(logits[0], warp, noise[:, 0], first)
        tokens, log_q = [first], [log_first]
        inputs, weights = self._inputs(ctx, first, size - 1), self._weights(ctx, first)
        leaves = weights.new_zeros(len(first), self.modelled, self.components)
        for k in range(size - 1):
            log_phi = nn.functional.linear(inputs[:, k], ctx.unembedding, ctx.bias)  # (N, r, V)
            if self.chained:
                log_phi = log_phi + nn.functional.linear(self.token(tokens[-1]), self.readout)[:, None]
            log_phi = log_phi.float().log_softmax(-1)
            posterior = self._posterior(weights, leaves, k)
            logits.append((posterior[..., None] + log_phi).logsumexp(1))
            token, log_q_k = warp.draw(logits[-1], noise[:, k + 1])
            leaves[:, k] = log_phi.gather(-1, token[:, None, None].expand(-1, self.components, 1))[..., 0]
            tokens.append(token)
            log_q.append(log_q_k)
        return Draft(torch.stack(tokens, 1), torch.stack(log_q, 1), logits, warp)

    def _posterior(self, weights: Tensor, leaves: Tensor, k: int) -> Tensor:
        """(N, r): log q(z_k | x_<k), the circuit with the leaf of position k set to each component in turn. leaves: of
        k and later 0."""
        one = torch.full((self.components, self.components), -torch.inf, device=leaves.device).fill_diagonal_(0.0)
        each = leaves[:, None].expand(-1, self.components, -1, -1).clone()
        each[:, :, k] = one.to(leaves.dtype)
        return self.combine(weights[:, None], each).log_softmax(-1)

    def _modelled(self, ctx: BlockContext, x: Tensor) -> Tensor:
        """(N, M'): log q(x_k | x_<k, h) of positions 2..M'+1."""
        count = x.shape[1] - 1
        inputs, tables = [self._inputs(ctx, x[:, 0], count).flatten(0, 2)], [ctx.unembedding]
        if self.chained:
            token = self.token(x[:, :-1])[:, :, None].expand(-1, -1, self.components, -1)
            inputs, tables = [*inputs, token.flatten(0, 2)], [*tables, self.readout]
        targets = x[:, 1:, None].expand(-1, -1, self.components)
        leaves = -row_nll(inputs, tables, targets.flatten(), ctx.bias).view(targets.shape)
        prefixes = torch.ones(count + 1, self.modelled, device=x.device).tril(-1)[..., None]  # m leaves of M are set
        leaves = nn.functional.pad(leaves, (0, 0, 0, self.modelled - count))
        sums = self.combine(self._weights(ctx, x[:, 0])[:, None], leaves[:, None] * prefixes)
        return sums.diff(dim=1)

    def _inputs(self, ctx: BlockContext, first: Tensor, count: int) -> Tensor:
        """(N, M', r, d): f_{k,z} of the first M' positions."""
        state = self._state(ctx, first)
        return self.projection(state, count * self.components).view(
            len(state), count, self.components, self.hidden_size
        )

    def _weights(self, ctx: BlockContext, first: Tensor) -> Tensor:
        return self.weigh(self._state(ctx, first)).float()

    def _state(self, ctx: BlockContext, first: Tensor) -> Tensor:
        return ctx.hidden + self.from_first(self.token_norm(nn.functional.embedding(first, ctx.embedding)))


class MixtureHead(CircuitHead):
    name = "mixture"

    def num_weights(self) -> int:
        return self.components

    def combine(self, weights, leaves):
        return (weights.log_softmax(-1) + leaves.sum(-2)).logsumexp(-1)

    def log_prior(self, ctx, first):
        return self._weights(ctx, first).log_softmax(-1)


class MixtureOfChains(MixtureHead):
    name, chained = "mixture-of-chains", True


class HiddenMarkovHead(CircuitHead):
    name = "hidden-markov"

    def num_weights(self) -> int:
        return self.components + (self.modelled - 1) * self.components**2

    def combine(self, weights, leaves):
        r = self.components
        alpha = weights[..., :r].log_softmax(-1) + leaves[..., 0, :]
        steps = weights[..., r:].unflatten(-1, (self.modelled - 1, r, r)).log_softmax(-1)
        for k in range(1, self.modelled):
            alpha = (alpha[..., None] + steps[..., k - 1, :, :]).logsumexp(-2) + leaves[..., k, :]
        return alpha.logsumexp(-1)


class TreeHead(CircuitHead):
    """A span's r sums each weigh r products of its halves' sums; the root's weights add its r sums up."""

    name = "tree"

    def num_weights(self) -> int:
        return self.components + (self.modelled - 1) * self.components**2

    def combine(self, weights, leaves):
        r = self.components
        sums = iter(weights[..., r:].unflatten(-1, (self.modelled - 1, r, r)).log_softmax(-1).unbind(-3))

        def span(low: int, high: int) -> Tensor:
            if high - low == 1:
                return leaves[..., low, :]
            middle = (low + high) // 2
            product = span(low, middle) + span(middle, high)
            return (next(sums) + product[..., None, :]).logsumexp(-1)

        return (weights[..., :r].log_softmax(-1) + span(0, self.modelled)).logsumexp(-1)
