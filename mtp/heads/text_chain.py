"""A block chain whose slots also look back at the text: what the trunk's last state leaves out can be read again.

Beside the slots before it (block_chain.py), slot j attends to the entries of the text (reading.py). What is found there
are states of the trunk, and the correction speaks of words as the trunk does (`tied`), so that they can be passed on.
What a drawn token costs is narrow blocks and a low-rank readout, as in every chain.
"""

from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from mtp.heads.block_chain import BlockChain, Slots
from mtp.heads.reading import Read, ReadsText


class TextChain(ReadsText, BlockChain):
    name = "text-chain"
    tied_unless_told: ClassVar[bool] = True

    def complete(self, hidden_size: int, embedding_size: int, width: int, num_heads: int, num_layers: int) -> None:
        readers = [Read(width, num_heads) for _ in range(num_layers)]
        self.add_readers(readers, hidden_size, embedding_size, width)

    def start(self, ctx, base):
        return replace(super().start(ctx, base), text=self.text_of(ctx))

    def read(self, n: int, z: Tensor, state: Slots) -> Tensor:
        return z + self.reads[n](z, state.text, state.text.pairs[n], state.position)
