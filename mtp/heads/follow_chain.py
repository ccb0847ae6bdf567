"""A recurrent chain that looks its first word up in the text once, and follows what stands after each place.

    p_m ∝ exp(q·k_m)                 over the places m ≤ i of the text, q of f_2(h) and E x_1
    c_k = W_c Σ_m p_m v_{m+k−2}      what stands k − 2 places further on, as far as i      (keys and values of reading.py)
    z_k = [r_{k−1}; W₁[x_{k−1}]; f_k(h); c_k],  a_k = tanh(W_o z_k) + σ(W_t z_k) ⊙ W_s c_k,  r as in the recurrent chain

The looking up is one attention a block for all its positions; what is left for each drawn token is the recurrent chain's
tiny step, whose gate t can leave the path when the words have.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mtp.heads.chains import RecurrentChain
from mtp.heads.reading import Read, ReadsText, Text
from mtp.heads.readout import embed


class FollowChain(ReadsText, RecurrentChain):
    name = "follow-chain"
    num_outputs: ClassVar[int] = 2

    def __init__(
        self,
        hidden_size,
        vocab_size,
        block_size,
        *,
        embedding_size: int | None = None,
        rank: int = 256,
        state_size: int | None = None,
        width: int = 256,
        num_heads: int = 4,
        projection_width: int | None = None,
        tied: bool = True,
    ) -> None:
        """rank: ρ, of the correction; state_size: width of r, default ρ; width: of entries and what is found; tied: see
        ReadoutHead."""
        super().__init__(
            hidden_size, vocab_size, block_size, rank=rank, state_size=state_size,
            projection_width=projection_width, tied=tied,
        )  # fmt: skip
        if width % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide the follow chain's width {width}")
        words = embedding_size or hidden_size
        self.token_norm = nn.RMSNorm(words)
        self.from_first = nn.Linear(words, width, bias=False)
        self.from_base = nn.Linear(hidden_size, width, bias=False)
        self.add_readers([Follow(width, num_heads)], hidden_size, words, width)
        self.from_found = nn.Linear(width, sum(self.sizes), bias=False)
        self.says = nn.Linear(width, rank, bias=False)

    def corrections(self, ctx, base, x):
        found = self._found(ctx, base[:, 0], x[:, 0], self.text_of(ctx), x.shape[1])
        inputs = self.from_hidden(base) + self.from_token(self.token(x)) + self.from_found(found)
        state, says, corrections = super().start(ctx, base), self.says(found), []
        for k in range(x.shape[1]):
            correction, state = self._follow(inputs[:, k], says[:, k], state)
            corrections.append(correction)
        return torch.stack(corrections, 1)

    def start(self, ctx, base):
        return Trail(super().start(ctx, base), self.text_of(ctx), base.shape[1])

    def step(self, ctx, base_k, state, token):
        if state.told is None:
            found = self._found(ctx, base_k, token, state.text, state.count)
            state = Trail(state.memory, None, state.count, self.from_found(found), self.says(found))
        k = state.position
        inputs = self.from_hidden(base_k) + self.from_token(embed(token, self.token.weight)) + state.told[:, k]
        correction, memory = self._follow(inputs, state.says[:, k], state.memory)
        return correction, Trail(memory, None, state.count, state.told, state.says, k + 1)

    def _found(self, ctx: Any, base: Tensor, first: Tensor, text: Text, count: int) -> Tensor:
        """c_2..c_{count+1}, (N, count, width), from f_2(h) (N, d) and x_1 (N,) or soft."""
        asked = self.from_base(base) + self.from_first(self.token_norm(embed(first, ctx.embedding)))
        return self.reads[0](asked[:, None].to(self.token_norm.weight.dtype), text, text.pairs[0], count)

    def _follow(self, inputs: Tensor, says: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        gate, candidate, output, trust = (inputs + self.from_state(state)).split(self.sizes, -1)
        gate = gate.sigmoid()
        return output.tanh() + trust.sigmoid() * says, gate * state + (1 - gate) * candidate.tanh()


@dataclass(frozen=True)
class Trail:
    """memory: r. text, count: what is to be looked up once the first word is known, for how many positions; told, says:
    what was found, (N, count, ·)."""

    memory: Tensor
    text: Text | None
    count: int
    told: Tensor | None = None
    says: Tensor | None = None
    position: int = 0


class Follow(Read):
    """Attention of one slot, whose look moves on by a place for each position to come."""

    def forward(self, z: Tensor, text: Text, pair: tuple[Any, Any], position: int) -> Tensor:
        """z: (N, 1, width); position: how many. → (N, position, width)."""
        q, (keys, values) = text.by_window(self._ask(z, text, 0)).squeeze(2).transpose(1, 2), pair  # (B, heads, A, ·)
        seen = text.seen[:, None]
        scores = (q @ keys.to(q.dtype).mT).float() * q.shape[-1] ** -0.5
        share = scores.masked_fill(~seen, -torch.inf).softmax(-1).to(q.dtype)
        moved = nn.functional.pad(share, (position - 1, 0)).unfold(-1, share.shape[-1], 1).flip(-2)  # (B, heads, A, M, L)
        found = ((moved * seen[..., None, :]).flatten(2, 3) @ values.to(q.dtype)).unflatten(2, (-1, position))
        return self.proj(text.by_anchor(found.permute(0, 2, 3, 1, 4)).flatten(2))
