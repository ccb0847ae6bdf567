"""A recurrent chain that looks its first word up in the text once, and follows what stands after each place.

    z   = [f_2(h); E x_1] after layers of attention to the text and SwiGLU,  r_1 = tanh(W_r z)
    p_m ∝ exp(q·k_m)                 over the places m ≤ i of the text, q of z
    c_k = W_c Σ_m p_m v_{m+k−2}      what stands k − 2 places further on, as far as i      (keys and values of reading.py)
    z_k = [r_{k−1}; W₁[x_{k−1}]; f_k(h); c_k],  a_k = tanh(W_o z_k) + σ(W_t z_k) ⊙ W_s c_k,  r_k as in the recurrent chain

All looking up is done once a block, for its first word; what is left for each drawn token is the recurrent chain's
tiny step, whose gate t can leave the path when the words have.
"""

from dataclasses import dataclass, replace
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
        num_layers: int = 1,
        projection_width: int | None = None,
        tied: bool = True,
    ) -> None:
        """rank: ρ, of the correction; state_size: width of r, default ρ; width: of entries and what is found; num_layers:
        of attention to the text before the look that is followed; tied: see ReadoutHead."""
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
        looks = [Look(width, num_heads) for _ in range(num_layers)]
        self.add_readers([*looks, Follow(width, num_heads)], hidden_size, words, width)
        self.begin = nn.Linear(width, self.state_size)
        self.from_found = nn.Linear(width, sum(self.sizes), bias=False)
        self.says = nn.Linear(width, rank, bias=False)

    def corrections(self, ctx, base, x):
        found, state = self._look(ctx, base[:, 0], x[:, 0], self.text_of(ctx), x.shape[1])
        inputs = self.from_hidden(base) + self.from_token(self.token(x)) + self.from_found(found)
        says, corrections = self.says(found), []
        for k in range(x.shape[1]):
            correction, state = self._follow(inputs[:, k], says[:, k], state)
            corrections.append(correction)
        return torch.stack(corrections, 1)

    def start(self, ctx, base):
        return self.text_of(ctx), base.shape[1]

    def step(self, ctx, base_k, state, token):
        if isinstance(state, tuple):
            found, memory = self._look(ctx, base_k, token, *state)
            state = Trail(memory, self.from_found(found), self.says(found))
        k = state.position
        inputs = self.from_hidden(base_k) + self.from_token(embed(token, self.token.weight)) + state.told[:, k]
        correction, memory = self._follow(inputs, state.says[:, k], state.memory)
        return correction, replace(state, memory=memory, position=k + 1)

    def _look(self, ctx: Any, base: Tensor, first: Tensor, text: Text, count: int) -> tuple[Tensor, Tensor]:
        """c_2..c_{count+1}, (N, count, width), and r_1, from f_2(h) (N, d) and x_1 (N,) or soft."""
        z = self.from_base(base) + self.from_first(self.token_norm(embed(first, ctx.embedding)))
        z = z[:, None].to(self.token_norm.weight.dtype)
        *looks, follow = zip(self.reads, text.pairs, strict=True)
        for look, pair in looks:
            z = look(z, text, pair, 0)
        reader, pair = follow
        return reader(z, text, pair, count), self.begin(z[:, 0]).tanh()

    def _follow(self, inputs: Tensor, says: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        gate, candidate, output, trust = (inputs + self.from_state(state)).split(self.sizes, -1)
        gate = gate.sigmoid()
        return output.tanh() + trust.sigmoid() * says, gate * state + (1 - gate) * candidate.tanh()


@dataclass(frozen=True)
class Trail:
    """memory: r. told, says: of what was found, (N, count, ·)."""

    memory: Tensor
    told: Tensor
    says: Tensor
    position: int = 0


class Look(Read):
    """A layer: attention to the text, then SwiGLU, each added."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__(width, num_heads)
        self.inner_norm = nn.RMSNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(2 * width, width, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, z: Tensor, text: Text, pair: tuple[Any, Any], position: int) -> Tensor:
        z = z + super().forward(z, text, pair, position)
        gate, up = self.up(self.inner_norm(z)).chunk(2, -1)
        return z + self.down(nn.functional.silu(gate) * up)


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
