"""A block drafted and judged under one way to verify, with the noise of both.

Noise that no two may share is drawn at once: of every pass K − 1 draws, K − 1 judgements and the next first token.
Where draft and trunk pick by the same noise it belongs to a place of the text, whoever asks for it and whenever.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowmap.rng import Rng
from flowmap.warp import Warp, inverse_cdf, pick
from mtp.decoding.confidence import Confidence, Watch
from mtp.decoding.rules import RULES, agreement
from mtp.heads.base import Draft

SHARED = ("gumbel", "inverse-cdf", "jacobi")
"""Ways by which the text is the one that the trunk alone writes with the same noise."""


@dataclass(frozen=True)
class Ending:
    """Where drafts end of their own will; see `Confidence.submitted`."""

    confidence: Confidence
    threshold: float
    drawn: bool = False

    def watch(self) -> Watch:
        return Watch(self.confidence, self.threshold, self.drawn)


@dataclass(frozen=True)
class Proposal:
    """What the trunk is to read: the first `width` tokens of the draft. submitted: (batch, K−1), False from where a row's
    draft ends; None: all of it."""

    draft: Draft
    width: int
    submitted: Tensor | None = None

    @property
    def block(self) -> Tensor:
        return self.draft.tokens[:, : self.width]

    @property
    def lengths(self) -> Tensor | int:
        """(batch,), of each row's draft, its first token included."""
        return self.draft.tokens.shape[1] if self.submitted is None else 1 + self.submitted.sum(1)


@dataclass(frozen=True)
class Judged:
    """kept: (batch,) of the drafted tokens that were read. log_p: (batch, read − 1), of those tokens. first, first_log:
    (batch,), the token after the last one kept."""

    kept: Tensor
    log_p: Tensor
    first: Tensor
    first_log: Tensor


class Drafter:
    """most: new tokens of a row. size: K. processed: the trunk's logits arrive as processors left them."""

    def __init__(
        self, model: Any, warp: Warp, verify: str, seed: int, rows: Tensor, size: int, most: int, processed: bool,
        ending: Ending | None = None,
    ) -> None:  # fmt: skip
        self.model, self.warp, self.verify, self.size, self.ending = model, warp, verify, size, ending
        # what processors leave is the law itself, or at temperature 0 its mode
        self.target = Warp(1.0 if warp.temperature > 0 else 0.0) if processed else warp
        self.seed, self.rows = seed, rows
        self.last: tuple[Tensor, Tensor] | None = None  # the trunk's picks of the last pass, and how many it kept
        self.uniform = Rng(seed, rows).uniform("verify", len(rows), most + 1, 2 * size - 1)

    def begin(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The text's first token and its log-probability, from the trunk's logits after the prompt."""
        noise = self._noise(torch.zeros_like(self.rows), 1)[:, 0] if self.verify in SHARED else self.uniform[:, 0, -1]
        return self.target.draw(logits, noise)

    def propose(self, hidden: Tensor, past: Any, first: Tensor, written: Tensor, step: int) -> Proposal:
        """K tokens a row, the first of them known. Where the host may look at how long the rows' drafts are, the head
        stops with the longest, if it can, and no more is to be read."""
        if self.verify == "jacobi":
            picks = self._last_picks(first)
            return Proposal(Draft(picks, torch.zeros_like(picks, dtype=torch.float32), (), self.warp), self.size)
        if self.verify in SHARED:
            noise = self._noise(written, self.size)
        else:  # the first token's place is not used
            noise = torch.nn.functional.pad(self.uniform[:, step + 1, : self.size - 1], (1, 0))
        context, head = self.model.context(hidden, past), self.model.head
        watch = None if self.ending is None else self.ending.watch()
        looks = hidden.device.type == "cpu"
        more = {"until": watch.ended} if watch is not None and looks and head.stops_early else {}
        draft = head.sample(context, self.warp, noise=noise, block_size=self.size, first=first, **more)
        if watch is None:
            return Proposal(draft, self.size)
        submitted = watch.submitted(draft)
        return Proposal(draft, 1 + int(submitted.sum(1).max()) if looks else self.size, submitted)

    def judge(self, logits: Tensor, proposal: Proposal, written: Tensor, step: int) -> Judged:
        """logits: (batch, read, V), the trunk's after each token that was read of the block."""
        log_p, width, draft = self.target.log_prob(logits), proposal.width, proposal.draft
        drafted = proposal.block[:, 1:]
        told = log_p[:, :-1].gather(-1, drafted[..., None])[..., 0]
        submitted = None if proposal.submitted is None else proposal.submitted[:, : width - 1]
        if self.verify in SHARED:
            picks, logs = pick(log_p, self._noise(written + 1, width))
            kept = agreement(picks, drafted)
            if submitted is not None:
                kept = kept.minimum(submitted.sum(1))
            self.last = picks, kept
            first, first_log = (x.gather(1, kept[:, None])[:, 0] for x in (picks, logs))
            return Judged(kept, told, first, first_log)
        uniform = self.uniform[:, step + 1, self.size - 1 :]
        rows = torch.arange(len(drafted), device=logits.device)
        if self.verify == "none" or width == 1:
            kept = torch.full_like(rows, width - 1) if submitted is None else submitted.sum(1)
            first, first_log = self.target.draw(logits[rows, kept], uniform[:, -1])
            return Judged(kept, draft.log_q[:, 1:width], first, first_log)
        law = torch.stack([draft.conditional(k) for k in range(1, width)], 1)
        if submitted is not None:
            law = law.masked_fill(~submitted[..., None], -torch.inf)
        verdict = RULES[self.verify](log_p, law, drafted, uniform[:, : width - 1], submitted)
        first = inverse_cdf(verdict.law, uniform[:, -1])
        return Judged(verdict.kept, told, first, log_p[rows, verdict.kept, first])

    def _noise(self, start: Tensor, count: int) -> Tensor:
        """Of the places start..start+count−1 of each row's new text, whenever it is asked for: uniforms (batch, count),
        or Gumbels (batch, count, V)."""
        place = start[:, None] + torch.arange(count, device=start.device)
        rng = Rng(self.seed, self.rows.repeat_interleave(count), place.flatten())
        if self.verify != "gumbel":
            return rng.uniform("place", place.numel(), 1).view(place.shape)
        vocab = len(self.model.get_output_embeddings().weight)
        uniform = rng.uniform("gumbel", place.numel(), vocab, dtype=torch.float64)
        return (-(-uniform.log()).log()).float().view(*place.shape, vocab)

    def _last_picks(self, first: Tensor) -> Tensor:
        """The picks after the last one kept, moved to the front; what is missing repeats the last of them."""
        if self.last is None:
            return first[:, None].expand(-1, self.size)
        picks, kept = self.last
        return picks.gather(1, (kept[:, None] + torch.arange(self.size, device=first.device)).clamp_max(self.size - 1))
