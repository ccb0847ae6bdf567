"""Chains with low-rank logits, a_k from the tokens already drawn. Both exact: log q is read off
teacher-forced, and sampling takes K tiny steps.

    first order  a_k = W₁[x_{k−1}]                                            (DSpark, 2607.05147)
    recurrent    z_k = [r_{k−1}; W₁[x_{k−1}]; f_k(h)],  a_k = tanh(W_o z_k),  r_1 = 0
                 r_k = g ⊙ r_{k−1} + (1 − g) ⊙ tanh(W_c z_k),  g = σ(W_g z_k)
    gru          r_k = GRU(r_{k−1}, E x_{k−1}),  a_k = SiLU(W_a [f_k(h); r_k]), W₂ its table  (Domino, 2605.29707)
"""

import torch
from torch import nn

from mtp.heads.readout import ReadoutHead, embed


class FirstOrderChain(ReadoutHead):
    name = "first-order-chain"

    def __init__(
        self, hidden_size, vocab_size, block_size, *, rank: int = 256, projection_width: int | None = None
    ) -> None:
        """rank: ρ, the rank of the correction W₂ᵀ W₁."""
        super().__init__(hidden_size, vocab_size, block_size, projection_width=projection_width, rank=rank)
        self.token = nn.Embedding(vocab_size, rank)

    def corrections(self, ctx, base, x):
        return self.token(x)

    def step(self, ctx, base_k, state, token):
        return embed(token, self.token.weight), None


class RecurrentChain(ReadoutHead):
    name = "recurrent-chain"

    def __init__(
        self,
        hidden_size,
        vocab_size,
        block_size,
        *,
        rank: int = 256,
        state_size: int | None = None,
        projection_width: int | None = None,
    ) -> None:
        """rank: ρ, of token embedding and correction; state_size: width of r, default ρ."""
        super().__init__(hidden_size, vocab_size, block_size, projection_width=projection_width, rank=rank)
        self.state_size = state_size or rank
        self.token = nn.Embedding(vocab_size, rank)
        self.sizes = [self.state_size, self.state_size, rank]  # of gate, candidate, output
        self.from_hidden = nn.Linear(hidden_size, sum(self.sizes))
        self.from_token = nn.Linear(rank, sum(self.sizes), bias=False)
        self.from_state = nn.Linear(self.state_size, sum(self.sizes), bias=False)

    def corrections(self, ctx, base, x):
        inputs = self.from_hidden(base) + self.from_token(self.token(x))
        state, corrections = self.start(ctx, base), []
        for k in range(x.shape[1]):
            correction, state = self._update(inputs[:, k], state)
            corrections.append(correction)
        return torch.stack(corrections, 1)

    def start(self, ctx, base):
        return torch.zeros(len(base), self.state_size, dtype=base.dtype, device=base.device)

    def step(self, ctx, base_k, state, token):
        return self._update(self.from_hidden(base_k) + self.from_token(embed(token, self.token.weight)), state)

    def _update(self, inputs, state):
        gate, candidate, output = (inputs + self.from_state(state)).split(self.sizes, -1)
        gate = gate.sigmoid()
        return output.tanh(), gate * state + (1 - gate) * candidate.tanh()


class GRUChain(ReadoutHead):
    name = "gru-chain"

    def __init__(
        self,
        hidden_size,
        vocab_size,
        block_size,
        *,
        embedding_size: int | None = None,
        rank: int = 256,
        state_size: int | None = None,
        projection_width: int | None = None,
    ) -> None:
        """rank: ρ, of the correction; state_size: width of the GRU, default ρ. It reads the trunk's own embedding."""
        super().__init__(hidden_size, vocab_size, block_size, projection_width=projection_width, rank=rank)
        width = state_size or rank
        self.token_norm = nn.RMSNorm(embedding_size or hidden_size)
        self.memory = nn.GRU(embedding_size or hidden_size, width, batch_first=True)
        self.mix = nn.Linear(hidden_size + width, rank)

    def corrections(self, ctx, base, x):
        return self._advance(ctx, base, x, None)[0]

    def step(self, ctx, base_k, state, token):
        correction, state = self._advance(ctx, base_k[:, None], token[:, None], state)
        return correction[:, 0], state

    def _advance(self, ctx, base, x, state):
        told, state = self.memory(self.token_norm(embed(x, ctx.embedding)), state)
        return nn.functional.silu(self.mix(torch.cat([base, told], -1))), state
