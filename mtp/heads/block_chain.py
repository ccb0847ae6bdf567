"""A causal chain of small transformer blocks over the block's own prefix (Hydra's idea, 2402.05109).

Slot j holds [f_{j+1}(h); E x_j] and attends to slots 1..j; its state gives a_{j+1}, so position k
sees the trunk state and every token x_1..x_{k−1} of its block. E is the trunk's own embedding.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mtp.heads.readout import ReadoutHead, embed


class BlockChain(ReadoutHead):
    name = "block-chain"
    tied_unless_told: ClassVar[bool] = False

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
        tied: bool | None = None,
    ) -> None:
        """width: of the small blocks, default hidden_size; rank: ρ of the correction; embedding_size:
        width of the trunk's embedding, default hidden_size; tied: see ReadoutHead, default the family's."""
        tied = self.tied_unless_told if tied is None else bool(tied)
        super().__init__(hidden_size, vocab_size, block_size, projection_width=projection_width, rank=rank, tied=tied)
        width = width or hidden_size
        if num_heads is None:
            num_heads = next(n for n in range(max(1, width // 64), 0, -1) if width % n == 0)
        if width % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide the block chain's width {width}")
        self.token_norm = nn.RMSNorm(embedding_size or hidden_size)
        self.from_token = nn.Linear(embedding_size or hidden_size, width)
        self.from_hidden = nn.Linear(hidden_size, width, bias=False)
        self.position = nn.Parameter(torch.randn(block_size - 1, width) * 0.02)
        self.layers = nn.ModuleList(Block(width, num_heads) for _ in range(num_layers))
        self.out = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, rank))
        self.complete(hidden_size, embedding_size or hidden_size, width, num_heads, num_layers)

    def complete(self, hidden_size: int, embedding_size: int, width: int, num_heads: int, num_layers: int) -> None:
        """What a family built on this one has besides."""

    def corrections(self, ctx, base, x):
        state = self.start(ctx, base)
        return self._advance(ctx, base, x, state)[0]

    def start(self, ctx, base):
        return Slots(0, [None] * len(self.layers))

    def read(self, n: int, z: Tensor, state: "Slots") -> Tensor:
        """Before layer n: what slots look at besides each other, nothing here. z: (N, M, width)."""
        return z

    def step(self, ctx, base_k, state, token):
        correction, state = self._advance(ctx, base_k[:, None], token[:, None], state)
        return correction[:, 0], state

    def _advance(self, ctx, base, x, state):
        """The next M slots: base (N, M, d), x (N, M) → corrections (N, M, ρ), state."""
        past = state.position
        tokens = self.token_norm(embed(x, ctx.embedding))
        z = self.from_token(tokens) + self.from_hidden(base) + self.position[past : past + x.shape[1]]
        caches = []
        for n, (layer, cache) in enumerate(zip(self.layers, state.caches, strict=True)):
            z, cache = layer(self.read(n, z, state), cache)
            caches.append(cache)
        return self.out(z), replace(state, position=past + x.shape[1], caches=caches)


@dataclass(frozen=True)
class Slots:
    """position: slots so far; caches: of each layer their keys and values; text: what more there is to look at."""

    position: int
    caches: list[tuple[Tensor, Tensor] | None]
    text: Any = None


class Block(nn.Module):
    """A pre-norm transformer block, causal over a handful of slots: attention then SwiGLU.

    Attention is written out: with K ≤ 16 slots and thousands of blocks the products are tiny, and
    one fused einsum over all blocks beats a kernel made for long sequences.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (width // num_heads) ** -0.5
        self.norm_1, self.norm_2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        inner = 2 * width
        self.up, self.down = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.down.weight)

    def forward(self, z: Tensor, cache: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """z: (N, M, width); cache: keys and values (N, P, heads, width/heads) of earlier slots."""
        q, k, v = self.qkv(self.norm_1(z)).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        if cache is not None:
            k, v = torch.cat([cache[0], k], 1), torch.cat([cache[1], v], 1)
        scores = torch.einsum("nqhc,nkhc->nhqk", q, k).float() * self.scale
        past = k.shape[1] - q.shape[1]
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=z.device).triu(past + 1)
        attention = scores.masked_fill(future, -torch.inf).softmax(-1).to(v.dtype)
        z = z + self.proj(torch.einsum("nhqk,nkhc->nqhc", attention, v).flatten(2))
        gate, up = self.up(self.norm_2(z)).chunk(2, -1)
        return z + self.down(nn.functional.silu(gate) * up), (k, v)
