"""Chains with low-rank logits, a_k from the tokens already drawn. Both exact: log q is read off
teacher-forced, and sampling takes K tiny steps.

    first order  a_k = W₁[x_{k−1}]                                            (DSpark, 2607.05147)
    recurrent    z_k = [r_{k−1}; W₁[x_{k−1}]; f_k(h)],  a_k = tanh(W_o z_k),  r_1 = 0
                 r_k = g ⊙ r_{k−1} + (1 − g) ⊙ tanh(W_c z_k),  g = σ(W_g z_k)
"""

import torch
from torch import nn

from mtp.heads.readout import ReadoutHead


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
        return self.token(token), None


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
        return self._update(self.from_hidden(base_k) + self.from_token(self.token(token)), state)

    def _update(self, inputs, state):
        gate, candidate, output = (inputs + self.from_state(state)).split(self.sizes, -1)
        gate = gate.sigmoid()
        return output.tanh(), gate * state + (1 - gate) * candidate.tanh()
