"""Where a context and its continuation stand in the windows of a model, and what their bound is then of.

A law of whole windows, or of blocks, has none for the beginning of one. Where each place is asked about without those behind
it (autoregressive, causal, masked diffusion, whose places behind stay blank) or by itself (blocks of 1) that is no matter, and
log P(continuation | context) is what is bounded. Else, with B tokens of a block (of a window written as a whole, all of it):

    a text begins a window   the rest of its last block is end tokens, scored along: P(continuation) ≥ P(continuation, end …)
    a text ends a block      end tokens stand before it, known as its context is, and none is scored      (of running text)

Both are laws of continuations of one length: Σ exp(−bound) ≤ 1 over all of them.
"""

from dataclasses import dataclass
from typing import Any

import torch

from eval.harness.scoring import Span
from flowlm.blocks import Blocks
from flowlm.token_map import Known
from flowmap.objectives.tokens import TokenStates


@dataclass(frozen=True)
class Laid:
    """states: one row. places: of the continuation. context: what is known of that row, and nothing else, (1, N)."""

    states: TokenStates
    places: slice
    context: Known


@dataclass(frozen=True)
class Windows:
    """length: tokens of a window. unit: B, 1 where beginnings have a law. end: the end token. begins: texts begin their
    windows. block: of a model of blocks, B. blank: of masked diffusion of whole windows, its blank."""

    length: int
    unit: int
    end: int
    begins: bool
    block: int | None = None
    blank: int | None = None

    @classmethod
    def of(cls, config: Any, end: int, begins: bool, block: int | None) -> "Windows":
        """config: of the model."""
        masked = config.model_type == "leaplm-masked-diffusion" and block is None
        by_place = masked or config.model_type == "leaplm-autoregressive" or getattr(config, "causal", False)
        unit = 1 if by_place else block or config.length
        return cls(config.length, unit, end, begins, block, config.vocab_size if masked else None)

    def lay(self, span: Span) -> Laid:
        """span: of `length` tokens at most."""
        tokens, first = list(span.tokens), span.start
        spare = self.length - len(tokens) if self.blank is not None else -len(tokens) % self.unit
        before = 0 if self.begins or self.blank is not None else spare
        filled = [*[self.end] * before, *tokens, *[self.end if self.blank is None else self.blank] * (spare - before)]
        ids, place = torch.tensor([filled]), torch.arange(len(filled))[None]
        places = slice(before + first, before + len(tokens))
        at = place < places.start
        scored = ~at if self.blank is None else ~at & (place < places.stop)
        known = Known(ids, at)
        context = Known(ids.masked_fill(~at, 0), at)
        if self.block is None:
            return Laid(TokenStates(ids, known, scored), places, context)
        blocks = Blocks(ids, torch.tensor([self.block]), known)
        return Laid(TokenStates(ids, blocks, scored, place // self.block), places, context)
