"""Direct decoding: K tokens committed for every pass of the trunk, with a KV cache.

Each step feeds the trunk the last K committed tokens, reads its state at the newest, and lets the
head draw the next block; nothing is verified. With no head K is 1 and this is ordinary decoding.
Prompts of different lengths are padded on the left; a row that stops inside a block keeps what it
wrote up to its stop token and waits for the others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowmap.rng import Rng
from flowmap.warp import Warp
from mtp.decoding.few_queries import few_query_attention

LOOK_EVERY = 16
"""Steps between two looks at whether every row has ended, where looking makes the host wait."""


Listener = Callable[[Tensor, Tensor], Tensor | None]
"""Called after every pass with its block (batch, K) and how many of the tokens count (batch,), 0 in rows that have
ended → how many of them a row is to keep that ends here (batch,), −1 where it goes on; or None."""


@dataclass(frozen=True)
class Decoded:
    """tokens: (batch, T), new tokens only, padded after each row's end; lengths: (batch,), the stop
    token included; log_q: (batch, T) nats under the law drawn from, 0 after the end; trunk_passes:
    forwards of the trunk, the prompt's included; stopped: (batch,), ended by a stop token."""

    tokens: Tensor
    lengths: Tensor
    log_q: Tensor
    trunk_passes: int
    stopped: Tensor

    @property
    def tokens_per_forward(self) -> float:
        """Committed tokens per trunk pass, mean over rows."""
        return self.lengths.float().mean().item() / self.trunk_passes


def pad_left(prompts: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token lists → ids and attention mask, (batch, longest)."""
    if not prompts or any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("every prompt needs at least one token; start an empty one with the end-of-text token")
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


@torch.no_grad()
def decode(
    model,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int,
    warp: Warp | None = None,
    seed: int = 0,
    rows: Tensor | None = None,
    block_size: int | None = None,
    stop_tokens: tuple[int, ...] = (),
    pad_token: int = 0,
    static_cache: bool = True,
    step_states: Callable[..., tuple[Tensor, Any]] | None = None,
    listen: Listener | None = None,
) -> Decoded:
    """input_ids: (batch, length), left-padded where attention_mask is 0.

    rows: (batch,) addresses of the rows' random numbers, default 0..batch−1: a row draws the same
    text whatever batch it is decoded in. block_size: at most the head's own. static_cache: keys and
    values in one buffer of the final length, instead of one that is copied as it grows. step_states:
    what passes the trunk after the prompt, default `model.states`; see `compiled_step`. listen: hears each block.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens {max_new_tokens} must be 1 or above")
    warp = warp or Warp()
    size = block_size_of(model, block_size)
    device = next(model.parameters()).device
    input_ids = input_ids.to(device)
    attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(device)
    batch = len(input_ids)
    if not attention_mask[:, -1].all():
        raise ValueError("prompts must be padded on the left: their last token is what the head reads")
    rows = torch.arange(batch, device=device) if rows is None else rows.to(device)
    stops = torch.tensor(stop_tokens, device=device)
    steps = -(-max_new_tokens // size)
    noise = Rng(seed, rows).uniform("decode", batch, steps, size)
    mask = torch.cat([attention_mask, attention_mask.new_ones(batch, steps * size)], 1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    cache = _static_cache(model, mask.shape[1]) if static_cache else None
    step_states = step_states or model.states
    history = history_of(model, batch, mask.shape[1])

    blocks, log_q = [], []
    open_rows, limit = torch.ones(batch, dtype=torch.bool, device=device), rows.new_full((batch,), max_new_tokens)
    look_every = 1 if device.type == "cpu" else LOOK_EVERY
    feed, seen = input_ids, 0
    for step in range(steps):
        seen += feed.shape[1]
        now = positions[:, seen - feed.shape[1] : seen]
        read = mask if static_cache else mask[:, :seen]
        with few_query_attention(model.trunk, batch):
            hidden, cache = (step_states if step else model.states)(feed, read, now, cache, True)
        if history is not None:
            history.add(feed, hidden, now, attention_mask if step == 0 else None)
        context = model.context(hidden[:, -1], None if history is None else history.at(now[:, -1]))
        if model.head is None:
            token, log = warp.draw(context.first_logits(), noise[:, step, 0])
            feed, log = token[:, None], log[:, None]
        else:
            draft = model.head.sample(context, warp, noise=noise[:, step], block_size=size)
            feed, log = draft.tokens, draft.log_q
        blocks.append(feed)
        log_q.append(log)
        heard = None if listen is None else listen(feed, size * open_rows)
        if heard is not None:
            ended = (heard >= 0) & open_rows
            limit = torch.where(ended, step * size + heard, limit)
            open_rows &= ~ended
        if stop_tokens:
            open_rows &= ~torch.isin(feed, stops).any(1)
        if (stop_tokens or listen) and step % look_every == look_every - 1 and not open_rows.any():
            break
    tokens, log = torch.cat(blocks, 1)[:, :max_new_tokens], torch.cat(log_q, 1)[:, :max_new_tokens]
    return trim(tokens, log, stops, pad_token, len(blocks), limit)


def history_of(model: Any, batch: int, capacity: int) -> Any:
    """What a head that reads the text before an anchor is to be given, or None. capacity: places of a row."""
    if model.head is None or not model.head.needs_past:
        return None
    from mtp.heads.past import History

    parameter = next(model.parameters())
    width = model.get_output_embeddings().weight.shape[1]
    return History(batch, capacity, width, model.head.block_size, parameter.device, parameter.dtype)


def _static_cache(model, length: int) -> Any:
    from transformers import StaticCache

    return StaticCache(config=model.trunk.config, max_cache_len=length)


def compiled_step(model) -> Callable[..., tuple[Tensor, Any]]:
    """The trunk's pass over one block, compiled (seconds, once for each batch and block size): worth it
    where Python is what a small trunk waits for. Give it to `decode` with a static cache."""
    return torch.compile(model.states, dynamic=False)


def block_size_of(model, asked: int | None) -> int:
    """The block asked for, at most the head's own."""
    most = 1 if model.head is None else model.head.block_size
    if asked is not None and not 1 <= asked <= most:
        raise ValueError(f"block_size {asked}: this model was trained for blocks of at most {most}")
    return asked or most


def trim(tokens: Tensor, log_q: Tensor, stops: Tensor, pad_token: int, passes: int, limit: Tensor) -> Decoded:
    """Cut every row after its first stop token, or at its limit (batch,)."""
    kept = torch.arange(tokens.shape[1], device=tokens.device) < limit[:, None]
    is_stop = torch.isin(tokens, stops) & kept
    before = is_stop.cumsum(1) - is_stop.long()  # stop tokens strictly earlier in the row
    keep = (before == 0) & kept
    return Decoded(
        tokens.masked_fill(~keep, pad_token), keep.sum(1), log_q.masked_fill(~keep, 0.0), passes, is_stop.any(1)
    )
