"""Verified decoding: the head drafts, the trunk judges the draft in one pass, and what is written follows the
trunk's own law, whatever the head.

A block's first token is always one of the trunk's own: drawn after the pass that judged the block before it, from
what the rule leaves there. A pass over the block then judges its other tokens and gives the state that the
next block hangs on, so that every pass commits between one and K tokens. Rows accept different lengths; no row's
length is ever asked from the device, only now and then whether all have ended.

    token, block        rules.py; lossless in law
    gumbel, inverse-cdf the draft and the trunk pick by the same noise: the text is the one that the trunk alone
                        writes with that noise, word for word, and no draft law is needed
    jacobi              no head: the trunk's own picks of the last pass are the next draft (2305.10427)
    none                nothing is judged: the whole draft stands, or as much as `confidence` has submitted

With `confidence` and `threshold` a row's draft ends where its tokens are unlikely to stand. The end is set at k by what
is known before x_k is drawn. So every law stays what it was: given that x_<k was kept, the place is decided, and x_k
comes from p there, or from q with its residual, which is p again (rules.py has both rules). A short draft saves time only
where the host may look at its length, on CPUs: the trunk's pass is then as narrow as the longest row's, and a head that
draws token by token stops there. Elsewhere a row's draft is masked, and costs what a whole one does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowmap.rng import Rng
from mtp.decoding.confidence import Confidence
from mtp.decoding.direct import LOOK_EVERY, Decoded, Listener, block_size_of, history_of, trim
from mtp.decoding.row_cache import RowCache
from mtp.decoding.rules import RULES, agreement
from mtp.decoding.warp import Warp, inverse_cdf, pick
from mtp.heads.base import Draft

SHARED = ("gumbel", "inverse-cdf", "jacobi")
VERIFY = (*RULES, *SHARED)
"""Ways that keep to the trunk's law."""

Watcher = Callable[[Draft, Tensor, Tensor], None]
"""Hears after every pass its draft, the trunk's law after each of its tokens (batch, K, V), and how many of them the row
commits (batch,), 0 in rows that have ended."""


@dataclass(frozen=True)
class Verified(Decoded):
    """log_q: nats under the trunk's law, or with verify none under the law drawn from. accepted: (batch, passes after
    the prompt's), tokens that each pass committed, its draft's and none beyond; 0 once a row had ended. read: as
    accepted, tokens that the pass had to read for that row: the draft up to its end."""

    accepted: Tensor
    read: Tensor

    @property
    def accepted_length(self) -> float:
        """Mean tokens per trunk pass over rows and passes, the prompt's left out."""
        return float(self.accepted.sum() / (self.accepted > 0).sum())

    @property
    def read_per_token(self) -> float:
        """Tokens that the trunk reads for each that is committed, the prompt left out: 1 at least."""
        return float(self.read.sum() / self.accepted.sum())


@torch.no_grad()
def decode_verified(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int,
    verify: str = "token",
    warp: Warp | None = None,
    seed: int = 0,
    rows: Tensor | None = None,
    block_size: int | None = None,
    stop_tokens: tuple[int, ...] = (),
    pad_token: int = 0,
    replay: Tensor | None = None,
    process: Callable[[Tensor, Tensor], Tensor] | None = None,
    listen: Listener | None = None,
    confidence: Confidence | None = None,
    threshold: float = 0.0,
    drawn: bool = False,
    watch: Watcher | None = None,
) -> Verified:
    """As `direct.decode`; verify: one of VERIFY, or "none". block_size: tokens a pass judges, for jacobi any number.

    confidence: ends each row's draft before the first position whose chance to stand, all before it included, is below
    threshold; with verify none, that much of it is committed, and the rest drawn again after the next pass, each token
    still from the head's own conditional or the trunk's. drawn, with verify none only: let each drawn token have its
    say in whether it stays, and so favour likely ones: another law than the head's, sharper. watch: hears each pass.

    process: (ids (1, n), logits (1, V)) → logits of the trunk in the warp's place, as transformers' processors, of one
    row; the law that is kept to is then the processed one, and the warp the draft's alone. listen: hears what is committed. replay: (batch, n)
    drafted tokens to keep, pass by pass and over again, whatever the rule says: for timing alone.
    """
    if verify not in (*VERIFY, "none"):
        raise ValueError(f"verify {verify!r}: known are {', '.join(VERIFY)}, none")
    if confidence is not None and verify == "jacobi":
        raise ValueError("confidence is read off a head's draft, and verify jacobi has none")
    if drawn and verify != "none":
        raise ValueError(f"drawn: ending a draft for the value of its token is biased with verify {verify}; only none")
    size = (block_size or 4) if verify == "jacobi" else block_size_of(model, block_size)
    if size < 2:
        raise ValueError("verified decoding needs blocks of at least 2 tokens, so a model with a joint head")
    device = next(model.parameters()).device
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens {max_new_tokens} must be 1 or above")
    ids, start = _left_aligned(input_ids, attention_mask, device)
    batch, longest = ids.shape
    if process is not None and batch > 1:
        raise ValueError(
            "processors are given one row's own text, and rows differ in length: decode one prompt at a time"
        )
    rows = torch.arange(batch, device=device) if rows is None else rows.to(device)
    check_window(model.trunk.config, longest + max_new_tokens)
    drafter = _Drafter(model, warp or Warp(), verify, seed, rows, size, max_new_tokens, process is not None)
    confidence = None if confidence is None else confidence.to(device)
    stops = torch.tensor(stop_tokens, device=device)
    room = max_new_tokens + 2 * size  # a row that has ended goes on writing over the same places beyond its end
    cache = RowCache(batch, longest + room, device, next(model.parameters()).dtype)
    text, log_p = torch.nn.functional.pad(ids, (0, room)), torch.zeros(batch, longest + room, device=device)
    written, open_rows = torch.zeros_like(start), torch.ones(batch, dtype=torch.bool, device=device)
    limit = torch.full_like(start, max_new_tokens)
    last = (start + max_new_tokens - 1)[:, None]  # nothing past it is returned, and position tables may end there

    def processed(logits: Tensor, ahead: int) -> Tensor:
        return logits if process is None else process(text[:, : int(start + written) + ahead], logits)

    places, mask = cache.open(longest, longest)
    states, _ = model.states(ids, mask, places, cache, True)
    cache.lengths = start
    history = history_of(model, batch, longest + room) if verify != "jacobi" else None
    if history is not None:
        history.add(ids, states, places)
    hidden = states.gather(1, (start - 1)[:, None, None].expand(-1, 1, states.shape[-1]))[:, 0]
    first, first_log = drafter.begin(processed(model.context(hidden).first_logits(), 0))
    accepted: list[Tensor] = []
    read: list[Tensor] = []
    look_every = 1 if device.type == "cpu" else LOOK_EVERY
    done = None
    if confidence is not None and device.type == "cpu":
        done = partial(confidence.ended, threshold=threshold, drawn=drawn)
    for step in range(max_new_tokens):
        past = None if history is None else history.at(start + written - 1)
        draft = drafter.draft(hidden, past, first, written, step, done)
        submitted = None if confidence is None else confidence.submitted(draft, threshold, drawn)
        width = 1 + int(submitted.sum(1).max()) if submitted is not None and done is not None else size
        block, index = draft.tokens[:, :width], (start + written)[:, None] + torch.arange(width, device=device)
        text.scatter_(1, index, block)
        places, mask = cache.open(width, longest + (step + 1) * size)
        states, _ = model.states(block, mask, places.minimum(last), cache, True)
        if history is not None:
            history.add(block, states, places)
        logits = model.context(states.flatten(0, 1)).first_logits().view(batch, width, -1)
        if process is not None:
            logits = torch.stack([processed(logits[:, k], k + 1) for k in range(width)], 1)
        judged = drafter.judge(logits, draft, submitted, written, step)
        kept = judged.kept if replay is None else replay[:, step % replay.shape[1]]
        log_p.scatter_(1, index, torch.cat([first_log[:, None], judged.log_p], 1))
        count = (kept + 1) * open_rows
        accepted.append(count)
        read.append((size if submitted is None else 1 + submitted.sum(1)) * open_rows)
        written = written + count
        cache.lengths = cache.lengths + count
        committed = torch.arange(width, device=device) < count[:, None]
        if watch is not None:
            watch(draft, drafter.target.log_prob(logits), count)
        heard = None if listen is None else listen(block, count)
        if heard is not None:
            ended = (heard >= 0) & open_rows
            limit = torch.where(ended, (written - count + heard).clamp_max(max_new_tokens), limit)
            open_rows = open_rows & ~ended
        open_rows = open_rows & ~(torch.isin(block, stops) & committed).any(1) & (written < max_new_tokens)
        hidden = states.gather(1, kept[:, None, None].expand(-1, 1, states.shape[-1]))[:, 0]
        first, first_log = judged.first, judged.first_log
        look = step % look_every == look_every - 1 or (step + 1) * size >= max_new_tokens
        if look and not open_rows.any():
            break
    made = torch.stack(accepted, 1)
    made = made[:, : int((made > 0).any(0).sum())]
    seen = torch.stack(read, 1)[:, : made.shape[1]]
    new = start[:, None] + torch.arange(max_new_tokens, device=device)
    whole = trim(text.gather(1, new), log_p.gather(1, new), stops, pad_token, made.shape[1] + 1, limit)
    return Verified(**vars(whole), accepted=made, read=seen)


@dataclass(frozen=True)
class _Judged:
    """kept: (batch,) of the drafted tokens that were read. log_p: (batch, read), of those tokens. first, first_log: (batch,), the
    token after the last one kept."""

    kept: Tensor
    log_p: Tensor
    first: Tensor
    first_log: Tensor


class _Drafter:
    """The draft and its judgement under one way to verify, with the noise of both."""

    def __init__(
        self, model: Any, warp: Warp, verify: str, seed: int, rows: Tensor, size: int, most: int, processed: bool
    ) -> None:
        self.model, self.warp, self.verify, self.size = model, warp, verify, size
        # what processors leave is the law itself, or at temperature 0 its mode
        self.target = Warp(1.0 if warp.temperature > 0 else 0.0) if processed else warp
        self.seed, self.rows = seed, rows
        self.last: tuple[Tensor, Tensor] | None = None  # the trunk's picks of the last pass, and how many it kept
        # drawn at once: of every pass K − 1 draws, K − 1 judgements and the next first token
        self.uniform = Rng(seed, rows).uniform("verify", len(rows), most + 1, 2 * size - 1)

    def begin(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The text's first token and its log-probability, from the trunk's logits after the prompt."""
        noise = self._noise(torch.zeros_like(self.rows), 1)[:, 0] if self.verify in SHARED else self.uniform[:, 0, -1]
        return self.target.draw(logits, noise)

    def draft(
        self, hidden: Tensor, past: Any, first: Tensor, written: Tensor, step: int, done: Callable[[Draft], bool] | None
    ) -> Draft:
        """K tokens a row, the first of them known; fewer where the head can stop and `done` with what it has."""
        if self.verify == "jacobi":
            picks = self._last_picks(first)
            return Draft(picks, torch.zeros_like(picks, dtype=torch.float32), (), self.warp)
        if self.verify in SHARED:
            noise = self._noise(written, self.size)
        else:  # the first token's place is not used
            noise = torch.nn.functional.pad(self.uniform[:, step + 1, : self.size - 1], (1, 0))
        context, head = self.model.context(hidden, past), self.model.head
        more = {"until": done} if done is not None and head.stops_early else {}
        return head.sample(context, self.warp, noise=noise, block_size=self.size, first=first, **more)

    def judge(self, logits: Tensor, draft: Draft, submitted: Tensor | None, written: Tensor, step: int) -> _Judged:
        """logits: (batch, read, V), the trunk's after each token that was read of the block. submitted: (batch, K−1)."""
        log_p, width = self.target.log_prob(logits), logits.shape[1]
        drafted = draft.tokens[:, 1:width]
        told = log_p[:, :-1].gather(-1, drafted[..., None])[..., 0]
        submitted = submitted if submitted is None else submitted[:, : width - 1]
        if self.verify in SHARED:
            picks, logs = pick(log_p, self._noise(written + 1, width))
            kept = agreement(picks, drafted)
            if submitted is not None:
                kept = kept.minimum(submitted.sum(1))
            self.last = picks, kept
            first = picks.gather(1, kept[:, None])[:, 0]
            return _Judged(kept, told, first, logs.gather(1, kept[:, None])[:, 0])
        uniform, rows = (
            self.uniform[:, step + 1, self.size - 1 :],
            torch.arange(len(draft.tokens), device=logits.device),
        )
        if self.verify == "none" or width == 1:
            kept = torch.full_like(rows, width - 1) if submitted is None else submitted.sum(1)
            first, first_log = self.target.draw(logits[rows, kept], uniform[:, -1])
            return _Judged(kept, draft.log_q[:, 1:width], first, first_log)
        law = torch.stack([draft.conditional(k) for k in range(1, width)], 1)
        if submitted is not None:
            law = law.masked_fill(~submitted[..., None], -torch.inf)
        verdict = RULES[self.verify](log_p, law, drafted, uniform[:, : width - 1], submitted)
        first = inverse_cdf(verdict.law, uniform[:, -1])
        return _Judged(verdict.kept, told, first, log_p[rows, verdict.kept, first])

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


def check_window(config: Any, length: int) -> None:
    """Rows of one cache look at all that is before them; a trunk that looks back so far only is another model."""
    config = config.get_text_config()
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if window and (kinds is None or "sliding_attention" in kinds) and length > window:
        raise ValueError(
            f"this trunk looks back {window} tokens at most: drafts are judged up to {window} tokens in all, not {length}"
        )


def _left_aligned(ids: Tensor, mask: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Left-padded prompts moved to the front, and their lengths."""
    ids = ids.to(device)
    mask = torch.ones_like(ids) if mask is None else mask.to(device)
    if not mask[:, -1].all():
        raise ValueError("prompts must be padded on the left: their last token is what the head reads")
    if (mask[:, 1:] < mask[:, :-1]).any():
        raise ValueError("attention_mask leaves out tokens inside a prompt: only padding before it can be left out")
    lengths = mask.sum(1)
    shift = (ids.shape[1] - lengths)[:, None] + torch.arange(ids.shape[1], device=device)
    return ids.gather(1, shift.clamp_max(ids.shape[1] - 1)), lengths
