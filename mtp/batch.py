"""A slice of a global batch of token windows, and the blocks that hang on its positions."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenBatch:
    """tokens: (batch, length + reach); the trunk reads the first `length`, the rest are targets only.
    document: same shape, which document a token belongs to, −1 for padding.
    scored: same shape, tokens that count as targets. hidden: cached trunk states (batch, length, d).
    starts: (batch, length), the only positions the head is trained at; None: all of them.
    position: same shape as tokens, where in the corpus a token stands, if it comes from one."""

    tokens: Tensor
    document: Tensor
    scored: Tensor
    length: int
    hidden: Tensor | None = None
    starts: Tensor | None = None
    position: Tensor | None = None

    @property
    def size(self) -> int:
        return len(self.tokens)

    @property
    def inputs(self) -> Tensor:
        return self.tokens[:, : self.length]

    def blocks(self, block_size: int) -> tuple[Tensor, Tensor]:
        """Targets x_{i+1}..x_{i+K} of every position i and which of them count, (batch, length, K).

        None counts past the end of position i's document, nor after a gap: a target counts only if
        every earlier one of its block does.
        """
        reach = self.length + block_size
        window = self.tokens[:, 1:reach].unfold(1, block_size, 1)
        inside = self.document[:, 1:reach].unfold(1, block_size, 1) == self.document[:, : self.length, None]
        inside &= self.scored[:, 1:reach].unfold(1, block_size, 1)
        return window, inside.long().cumprod(-1).bool()

    def to(self, device: torch.device) -> "TokenBatch":
        optional = {
            name: None if value is None else value.to(device, non_blocking=True)
            for name, value in (("hidden", self.hidden), ("starts", self.starts), ("position", self.position))
        }
        tokens, document, scored = (x.to(device) for x in (self.tokens, self.document, self.scored))
        return TokenBatch(tokens, document, scored, self.length, **optional)
