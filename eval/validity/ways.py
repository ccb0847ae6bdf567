"""The ways a probe has a model write its answers, and how what it wrote is read.

    joint        its own law of a block: a head's by direct decoding, or token by token where it has no head
    independent  every token drawn apart from its own exact marginal of that law, as the best factorised decoder would:
                 T answers are drawn, and token k is taken from the k-th (2404.19737's heads at their optimum)
    verified     drafts that the trunk judges, which leaves the trunk's law; without a head the trunk drafts (jacobi)

An answer ends with the model's end token. A model that was never taught to end is read with ending "any": what follows
the answer's last word is not looked at.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad

from eval.decoding import decode_all
from eval.loading import LoadedRun
from mtp.decoding.direct import Decoded, trim
from mtp.decoding.speculative import VERIFY
from training.data.cases import EncodedSuite

DECODERS = ("joint", "independent", "verified")
ENDINGS = ("token", "any")
UNFINISHED = "(unfinished)"


@dataclass(frozen=True)
class Way:
    """decoder: one of DECODERS; verify: the rule of "verified", default token, or jacobi without a head; ending: one of
    ENDINGS."""

    decoder: str = "joint"
    verify: str | None = None
    ending: str = "token"

    def __post_init__(self) -> None:
        for name, known in (("decoder", DECODERS), ("ending", ENDINGS), ("verify", (None, *VERIFY))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r}: known are {', '.join(filter(None, known))}")

    def rule(self, run: LoadedRun) -> str:
        """As the contract of a record names it."""
        if self.decoder != "verified":
            return "none"
        return self.verify or ("jacobi" if run.model.head is None else "token")

    def subject(self, run: LoadedRun, size: int) -> str:
        """Whose law it is that answers are drawn from."""
        if self.decoder == "independent":
            return "marginals"
        return "trunk" if size == 1 or self.decoder == "verified" else run.subject

    def longest(self, encoded: EncodedSuite) -> int:
        """Tokens to write: with an open ending one more than any answer has, which shows whether its last word goes on."""
        return encoded.longest + (self.ending == "any" and not encoded.closed)

    def write(
        self,
        run: LoadedRun,
        encoded: EncodedSuite,
        starts: list[list[int]],
        *,
        block: int | None,
        batch: int,
        **how: Any,
    ) -> Iterator[tuple[slice, Decoded]]:
        """As `decode_all`: how is its warp and seed."""
        how |= {"new": self.longest(encoded), "stops": encoded.closed or self.ending == "any"}
        if self.decoder == "independent":
            yield from _apart(run, starts, block=block, batch=batch, **how)
        elif self.decoder == "verified":
            yield from decode_all(run, starts, block=block, batch=batch, verify=self.rule(run), **how)
        else:
            yield from decode_all(run, starts, block=block, batch=batch, **how)

    def read(self, run: LoadedRun, encoded: EncodedSuite, out: Decoded, prompts: Sequence[str]) -> Iterator[str]:
        """The answer of each row to its prompt."""
        closed = encoded.closed or self.ending == "any"
        lengths = (out.lengths - out.stopped.long()) if closed else out.lengths
        rows = [tokens[:length] for tokens, length in zip(out.tokens.tolist(), lengths.tolist(), strict=True)]
        texts = run.tokenizer.batch_decode(rows)
        for prompt, text, done in zip(prompts, texts, out.stopped.tolist(), strict=True):
            words = text.split()
            if self.ending == "any":
                yield _beginning(words, encoded.suite.laws[prompt])
            else:
                yield " ".join(words if done or not closed else [*words, UNFINISHED])


def _beginning(words: list[str], law: Mapping[str, float]) -> str:
    """The longest answer that the words begin with; else as many of them as the longest answer has."""
    most = max(len(text.split()) for text in law)
    begun = (" ".join(words[:n]) for n in range(min(most, len(words)), 0, -1))
    return next((text for text in begun if text in law), " ".join(words[:most]))


def _apart(
    run: LoadedRun, starts: list[list[int]], *, new: int, stops: bool, batch: int, **how: Any
) -> Iterator[tuple[slice, Decoded]]:
    """Token k of each answer from the k-th of `new` draws for it; past an end token a draw goes on with end tokens."""
    end = run.tokenizer.eos_token_id
    repeated = [start for start in starts for _ in range(new)]
    whole = max(1, batch // new) * new
    for part, out in decode_all(run, repeated, new=new, stops=stops, batch=whole, **how):
        drawn = pad(out.tokens, (0, new - out.tokens.shape[1]), value=end).view(-1, new, new)
        tokens = drawn.diagonal(dim1=1, dim2=2)
        ends = torch.tensor([end] if stops else [], device=tokens.device, dtype=torch.long)
        limit = torch.full_like(tokens[:, 0], new)
        which = slice(part.start // new, part.stop // new)
        yield which, trim(tokens, torch.zeros(tokens.shape, device=tokens.device), ends, end, out.trunk_passes, limit)
