"""log P(continuation | context), summed, of many spans of text at once; nothing here knows lm-eval.

    trunk   Σ_i log p(x_i | x_<i), one token after another
    blocks  Σ_b log q(x_{b+1..b+K} | h_b), in consecutive blocks of K from the context's end; the last may be short

Rows are padded on the right, which a causal trunk does not see, and logits are made for the continuation's places alone.
Shapes: M spans, R rows of T tokens that the trunk reads, N anchors (places of the trunk that a target or block hangs on).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from eval.likelihood import head_nll
from flowmap.rng import Rng
from flowmap.warp import Warp
from mtp.heads.base import BlockContext
from mtp.losses.linear_nll import chunk_rows


@dataclass(frozen=True)
class Span:
    """tokens: context and continuation; start: where in them the continuation begins, of a causal trunk 1 or later."""

    tokens: tuple[int, ...]
    start: int

    @classmethod
    def of(cls, context: Sequence[int], continuation: Sequence[int], longest: int, least: int = 0) -> "Span":
        """longest: tokens at most; what is over is cut from the left, as the harness does. least: tokens of the context that
        are kept in any case."""
        if len(continuation) > longest - least:
            raise ValueError(
                f"a continuation of {len(continuation)} tokens is longer than the {longest - least} that this model reads: "
                "give max_length if it can read more, or score it with a rolling task"
            )
        tokens = (*context, *continuation)[-longest:]
        return cls(tokens, len(tokens) - len(continuation))

    @property
    def row(self) -> tuple[int, ...]:
        """What the trunk reads: spans that differ in the last token alone are one row."""
        return self.tokens[:-1]

    @property
    def address(self) -> int:
        """Of its random numbers: the same for the same text wherever it stands."""
        return hash_of(self.start, *self.tokens)


def hash_of(*parts: Any) -> int:
    """A number of 32 bits that is the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


@torch.no_grad()
def score_spans(
    model: Any, spans: Sequence[Span], block_size: int = 1, seed: int = 0, want_greedy: bool = True
) -> list[tuple[float, bool]]:
    """One batch, read in one pass of the trunk → of each span its sum in nats, and whether greedy decoding from the
    context would write it (False where not asked). block_size: 1 is the trunk's own law, above it the head's in blocks.
    seed: of heads whose law is a mean over noise, for which the sum is a bound."""
    device = model.device
    rows: dict[tuple[int, ...], int] = {}
    row_of = [rows.setdefault(span.row, len(rows)) for span in spans]
    lengths = [len(span.tokens) for span in spans]
    most = max(lengths)
    padded = [(*span.tokens, *[0] * (most + block_size - 1 - len(span.tokens))) for span in spans]
    tokens = torch.tensor(padded, device=device)
    first = torch.tensor([span.start - 1 for span in spans], device=device)[:, None]
    length = torch.tensor(lengths, device=device)[:, None]
    place = torch.arange(most - 1, device=device)
    continued = (place >= first) & (place < length - 1)
    row = torch.tensor(row_of, device=device)
    one_of = torch.zeros(len(rows), dtype=torch.long, device=device).scatter_(
        0, row, torch.arange(len(row), device=device)
    )
    hidden, _ = model.states(tokens[one_of, : most - 1])
    if block_size == 1:
        span, at = torch.nonzero(continued, as_tuple=True)
        nll, hit = next_token(model.context(hidden[row[span], at]), tokens[span, at + 1])
    else:
        anchors = continued & ((place - first) % block_size == 0)
        span, at = torch.nonzero(anchors, as_tuple=True)
        index = at[:, None] + 1 + torch.arange(block_size, device=device)
        targets, inside = tokens[span[:, None], index], index < length[span]
        addresses = torch.tensor([part.address for part in spans], device=device)
        rng = Rng(seed, addresses[span], at)
        hidden = hidden[row]
        nll, _ = head_nll(model.head, model.anchored(hidden, tokens, anchors), targets, rng)
        nll = (nll.double() * inside).sum(1)
        hit = torch.zeros_like(span, dtype=torch.bool)
        if want_greedy:
            ctx = model.anchored(hidden, tokens, anchors, own_block=False)
            drafted = model.head.sample(ctx, Warp(0.0), rng, block_size=block_size).tokens
            hit = ((drafted == targets) | ~inside).all(1)
    sums = torch.zeros(len(spans), dtype=torch.float64, device=device).index_add_(0, span, -nll.double())
    missed = torch.zeros_like(sums).index_add_(0, span, (~hit).double())
    return list(zip(sums.tolist(), (missed == 0).tolist(), strict=True))


def next_token(ctx: BlockContext, targets: Tensor) -> tuple[Tensor, Tensor]:
    """−log of the trunk's law of each target (N,), in nats, and whether it is the likeliest token."""
    nll, hit = [], []
    size = chunk_rows(len(ctx.unembedding))
    for hidden, target in zip(ctx.hidden.split(size), targets.split(size), strict=True):
        logits = linear(hidden, ctx.unembedding, ctx.bias).float()
        nll.append(cross_entropy(logits, target, reduction="none"))
        hit.append(logits.argmax(-1) == target)
    return torch.cat(nll), torch.cat(hit)
