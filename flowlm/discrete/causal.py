"""The plain autoregressive model, as a window's law and as an objective.

    −log P(x) = Σ_l −log p_θ(x^l | x^{<l})

The backbone reads the tokens one place late, behind the blank, and no place looks at a later one; its times stand at 0.
What is known costs nothing, and so a prompt is what it always is. Shapes as in `base`.
"""

from typing import Any

import torch
from torch import Tensor

from flowlm.discrete.base import DiscreteMap, token_nll, unknown
from flowlm.token_map import Known
from flowmap.objectives.base import Loss, Objective
from flowmap.objectives.tokens import TokenStates
from flowmap.rng import Rng


class CausalMap(DiscreteMap):
    def logits(self, tokens: Tensor, context: Known | None = None) -> Tensor:
        """Of each token given those before it, (B, N, V); certain of what is known. tokens: (B, N)."""
        z = self.ahead(self.late(tokens)[:, :-1])
        return z if context is None else context.settle(z)

    def late(self, tokens: Tensor) -> Tensor:
        """(B, n) → (B, n + 1), the blank before them."""
        return torch.nn.functional.pad(tokens, (1, 0), value=self.blank)

    def ahead(self, ids: Tensor, cache: Any = None) -> Tensor:
        """Logits of what follows each of ids, (B, n) → (B, n, V). cache: of all that stands before them."""
        new, past = ids.shape[1], 0 if cache is None else cache.get_seq_length()
        mask = torch.ones(new, past + new, dtype=torch.bool, device=ids.device).tril(past) if new > 1 else None
        return self.read(ids, torch.zeros(len(ids), device=ids.device), mask=mask, cache=cache)


class Autoregressive(Objective):
    """Nats a token, exact."""

    def forward(self, model: Any, batch: TokenStates, *, teacher: Any = None, rng: Rng, step: int) -> Loss:
        nll = token_nll(model.logits(batch.tokens), batch.tokens, unknown(batch)).sum()
        return Loss(nll, batch.count, {"nll": (nll.detach(), batch.count)})
