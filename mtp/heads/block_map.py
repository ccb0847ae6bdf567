"""The two-time map over the codes of a block's positions 2..K, with its logits by chunks of rows.

    x_t = (1−t)·c + t·ε                                                     (t = 1 is noise; math.md §1, §4, §6)
    logits of p_{t→s}(x_t) = W (f_k(h) + y_k),    y = Backbone(x_t, t, s | h, E x_1)
    X_{t→s}(x_t) = (s/t)·x_t + (1−s/t)·Cᵀ p_{t→s}(x_t)

W, E are the trunk's tables, C a narrow one of learned codes, f_k the projection that other heads have: with y = 0, as a
fresh network has it, p is what other heads guess of a token alone. What x_t says of its own token, (1−t)/t²·x_t Cᵀ (§4),
is *not* added: it grows without bound, and where tokens depend on each other the network had first to unlearn it (of
skip-64's blocks 73% were valid in one step with it, 99.6% without).

Shapes: N rows, M = K−1 states, V words, d the trunk's width, e a code's.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowmap.backbone import Backbone, BackboneConfig, Context
from flowmap.codebook import Embedding, in_full
from flowmap.maps import FlowMap
from flowmap.objectives.tokens.base import NoisedTokens
from flowmap.path import LinearPath, expand
from mtp.losses.linear_nll import chunk_rows, row_nll


@dataclass(frozen=True)
class Given:
    """What the map is told of N blocks. vector: (N, ·) of h and x_1; base: (N, M, d), f_k(h); the trunk's tables."""

    vector: Tensor
    base: Tensor
    unembedding: Tensor
    bias: Tensor | None

    def __getitem__(self, rows: Any) -> "Given":
        return replace(self, vector=self.vector[rows], base=self.base[rows])


class Codes(Embedding):
    """Codes as long as the noise, √e, so that tokens are told apart in the middle of [0, 1]; token −1 has none: 0."""

    def __init__(self, size: int, state_size: int) -> None:
        super().__init__(size, state_size, norm=state_size**0.5)

    def encode(self, tokens: Tensor) -> Tensor:
        return super().encode(tokens.clamp_min(0)) * (tokens >= 0)[..., None]


class BlockMap(FlowMap):
    """What objectives on tokens expect of a model; their context is `Given`. config.output_size is d."""

    network: Backbone

    def __init__(self, config: BackboneConfig, vocab_size: int) -> None:
        super().__init__(Backbone(config), LinearPath(), data_scale=1.0, codebook=Codes(vocab_size, config.state_size))

    def logits(self, x_t, t, s, context=None, self_cond=None):
        return self.read(self.features(x_t, t, s, context), context)

    def features(self, x_t: Tensor, t: Tensor, s: Tensor, given: Given) -> Tensor:
        """f_k(h) + y_k, (N, M, d): what W reads."""
        scale = (self.path.alpha(t).square() + self.path.sigma(t).square()).rsqrt()
        x = (expand(scale, x_t) * x_t).to(self.network.read.weight.dtype)
        return given.base + self.network(x, t, s, Context(vector=given.vector))

    def read(self, features: Tensor, given: Given) -> Tensor:
        """(N, M, V), fp32 or better."""
        return in_full(nn.functional.linear(features, given.unembedding, given.bias))

    def nll(self, features: Tensor, given: Given, tokens: Tensor) -> Tensor:
        """−log p[x_k], (N, M) nats; anything where there is no token."""
        flat = features.flatten(0, 1), tokens.clamp_min(0).flatten()
        return row_nll([flat[0]], [given.unembedding], flat[1], given.bias).view(tokens.shape)

    def expected(self, features: Tensor, given: Given) -> Tensor:
        """g = Cᵀp, (N, M, e)."""
        return self._by_chunk(lambda part: self.codebook.expected(self.read(part, given)), features)

    def step(self, x_t: Tensor, t: Tensor, s: Tensor, given: Given) -> Tensor:
        """X_{t→s}(x_t) without all logits at once."""
        return self.path.jump(x_t, self.expected(self.features(x_t, t, s, given), given), t, s)

    def divergence(self, features: Tensor, x: NoisedTokens, t_min: float) -> Tensor:
        """KL(sg q ‖ p_{t→s}), (N, M), where q = a·p_{t→u}(x_t) + (1−a)·p_{u→s}(X_{t→u}(x_t)): that of `ProgressiveKL`
        for every position, with features of all rows at once and logits by chunks. Codes are held still."""
        given = x.context
        with torch.no_grad():
            u = torch.minimum((x.s + x.u * (x.t - x.s)).clamp_min(t_min), x.t)
            a = (x.s * (x.t - u) / (u * (x.t - x.s)).clamp_min(1e-12)).clamp(0, 1)
            first = self.features(x.x_t, x.t, u, given)
            x_u = self.path.jump(x.x_t, self.expected(first, given), x.t, u)
            second = self.features(x_u, u, x.s, given)

        def piece(features, first, second, a):
            with torch.no_grad():
                p_first, p_second = (self.read(part, given).softmax(-1) for part in (first, second))
                q = torch.lerp(p_second, p_first, expand(a, p_first).to(p_first))
            log_p = self.read(features, given).log_softmax(-1)
            return -(q * log_p + torch.special.entr(q)).sum(-1)

        return self._by_chunk(piece, features, first, second, a)

    def rows_at_once(self, states: int) -> int:
        return max(1, chunk_rows(self.codebook.size) // states)

    def _by_chunk(self, piece: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """piece over as many rows at a time as their logits allow; logits are computed again backwards."""
        size = self.rows_at_once(rows[0].shape[1])
        parts = list(zip(*(part.split(size) for part in rows), strict=True))
        if len(parts) == 1:
            return piece(*parts[0])
        if torch.is_grad_enabled():
            return torch.cat([checkpoint(piece, *part, use_reentrant=False) for part in parts])
        return torch.cat([piece(*part) for part in parts])
