"""Windows of a flow language model: tokens, which of them are known, which are scored; how they are cut into blocks, and
what has a time of its own."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowlm.blocks import Blocks
from flowlm.token_map import Known
from flowmap.objectives.tokens import TokenStates
from flowmap.rng import Rng
from mtp.batch import TokenBatch
from training.data.windows import CaseRows, TextWindows


@dataclass(frozen=True)
class FlowWindows:
    """source: rows of one length, nothing behind them to look at. end: the token that stands behind a text's end. prompts:
    of text, the share of the windows that begin with a known stretch, each length alike. A suite's prompts are always
    known. block_lengths: each window is cut into blocks of one of these, all alike likely; none: it is not cut. noise: what
    has a time of its own, a sample, a block or a token. prompt_dropout: the share of the windows whose known tokens are not shown."""

    source: CaseRows | TextWindows
    end: int
    prompts: float = 0.0
    block_lengths: tuple[int, ...] = ()
    noise: str = "sample"
    prompt_dropout: float = 0.0

    def batch(self, step: int, samples: Tensor) -> TokenStates:
        rng = Rng(self.source.seed, samples, step)
        return self.states(self.source.batch(step, samples), rng)

    def states(self, batch: TokenBatch, rng: Rng) -> TokenStates:
        """The same of rows that were picked already."""
        tokens = batch.inputs.masked_fill(batch.document[:, : batch.length] < 0, self.end)
        if isinstance(self.source, CaseRows):
            at = ~batch.scored[:, : batch.length] & (batch.document[:, : batch.length] >= 0)
        else:
            at = self._beginnings(rng, *tokens.shape)
        dropped = (rng.uniform("prompt dropout", len(tokens)) < self.prompt_dropout)[:, None] & at
        known, place = (
            Known(tokens, at, dropped if self.prompt_dropout else None),
            torch.arange(batch.length).expand_as(tokens),
        )
        levels = place if self.noise == "token" else None
        if not self.block_lengths:
            return TokenStates(tokens, known if at.any() else None, ~at, levels)
        pick = (rng.uniform("block length", len(tokens)) * len(self.block_lengths)).long()
        size = torch.tensor(self.block_lengths)[pick]
        if self.noise == "block":
            levels = place // size[:, None]
        return TokenStates(tokens, Blocks(tokens, size, known), ~at, levels)

    def _beginnings(self, rng: Rng, rows: int, length: int) -> Tensor:
        told = rng.uniform("prompts", rows) < self.prompts
        cut = (rng.uniform("prompt length", rows) * length).long() * told
        return torch.arange(length) < cut[:, None]
