"""A recurrent chain that looks back at the text for every word: what a block chain over the text finds, at a small price.

    z_k = W_x norm(E x_{k−1}) + W_h f_k(h) + W_r r_{k−1}
    r_k = z_k + read(z_k) + SwiGLU,   a_k = W_a norm(r_k),   r_1 = 0

read is attention to the entries of the text (reading.py). The correction speaks of words as the trunk does (`tied`), for
what is found are its states.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mtp.heads.reading import Read, ReadsText, Text
from mtp.heads.readout import Kept, ReadoutHead, embed

Norm = partial(nn.LayerNorm, bias=False)
"""One kernel on CPUs, where an RMS norm is many."""


class TextRecurrent(ReadsText, ReadoutHead):
    name = "text-recurrent-chain"

    def __init__(
        self,
        hidden_size,
        vocab_size,
        block_size,
        *,
        embedding_size: int | None = None,
        width: int = 256,
        num_heads: int = 4,
        rank: int = 256,
        projection_width: int | None = None,
        tied: bool = True,
    ) -> None:
        """width: of r and of the text's entries; rank: ρ of the correction; tied: see ReadoutHead."""
        super().__init__(hidden_size, vocab_size, block_size, projection_width=projection_width, rank=rank, tied=tied)
        if width % (2 * num_heads):
            raise ValueError(f"width {width} of the text-recurrent chain is not {num_heads} heads of even size")
        words = embedding_size or hidden_size
        self.token_norm, self.norm = nn.RMSNorm(words), Norm(width)
        self.from_token = nn.Linear(words, width)
        self.from_hidden = nn.Linear(hidden_size, width, bias=False)
        self.from_state = nn.Linear(width, width, bias=False)
        self.add_readers([Read(width, num_heads, Norm)], hidden_size, words, width)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(2 * width, width, bias=False)
        nn.init.zeros_(self.down.weight)
        self._words = Kept()
        self.out = nn.Sequential(Norm(width), nn.Linear(width, rank))

    def corrections(self, ctx, base, x):
        state, tokens, states = self.start(ctx, base), self._tokens(ctx, x), []
        for k in range(x.shape[1]):
            state = self._advance(tokens[:, k], state)
            states.append(state.memory)
        return self.out(torch.stack(states, 1))

    def start(self, ctx, base):
        bases = self.from_hidden(base)
        return Reading(self.text_of(ctx), bases, bases.new_zeros(len(base), bases.shape[-1]))

    def step(self, ctx, base_k, state, token):
        state = self._advance(self._token(ctx, token), state)
        return self.out(state.memory), state

    def _tokens(self, ctx: Any, x: Tensor) -> Tensor:
        return self.from_token(self.token_norm(embed(x, ctx.embedding)))

    def _token(self, ctx: Any, token: Tensor) -> Tensor:
        """Of a drawn word, from a table of all words where none is being learned; soft ones are mixed before the norm."""
        if torch.is_grad_enabled() or token.is_floating_point():
            return self._tokens(ctx, token)
        every = lambda: self.from_token(self.token_norm(ctx.embedding))  # noqa: E731
        return embed(token, self._words(every, ctx.embedding, self.token_norm.weight, *self.from_token.parameters()))

    def _advance(self, token: Tensor, state: "Reading") -> "Reading":
        """token: (N, width), of x_{k−1}."""
        z = token + state.bases[:, state.position] + self.from_state(state.memory)
        z = z + self.reads[0](z[:, None], state.text, state.text.pairs[0], state.position)[:, 0]
        gate, up = self.up(self.norm(z)).chunk(2, -1)
        z = z + self.down(nn.functional.silu(gate) * up)
        return replace(state, memory=z, position=state.position + 1)


@dataclass(frozen=True)
class Reading:
    """bases: (N, M, width), of every f_k(h); memory: r; position: words so far."""

    text: Text
    bases: Tensor
    memory: Tensor
    position: int = 0
