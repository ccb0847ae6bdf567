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
from typing import Any

import torch
from torch import Tensor

from flowmap.warp import Warp
from mtp.decoding.confidence import Confidence
from mtp.decoding.direct import LOOK_EVERY, Listener, block_size_of
from mtp.decoding.drafter import SHARED, Drafter, Ending
from mtp.decoding.rows import Rows, Verified, check_window, left_aligned, pick_state
from mtp.decoding.rules import RULES
from mtp.heads.base import Draft

VERIFY = (*RULES, *SHARED)
"""Ways that keep to the trunk's law."""

Watcher = Callable[[Draft, Tensor, Tensor], None]
"""Hears after every pass its draft, the trunk's law after each of its tokens (batch, K, V), and how many of them the row
commits (batch,), 0 in rows that have ended."""


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
    if confidence is None and (threshold or drawn):
        raise ValueError("threshold and drawn end drafts by an estimate of what stands: give confidence too")
    size = _checked_size(model, verify, block_size, max_new_tokens, confidence, drawn)
    device = next(model.parameters()).device
    ids, start = left_aligned(input_ids, attention_mask, device)
    if process is not None and len(ids) > 1:
        raise ValueError(
            "processors are given one row's own text, and rows differ in length: decode one prompt at a time"
        )
    check_window(model.trunk.config, ids.shape[1] + max_new_tokens)
    addresses = torch.arange(len(ids), device=device) if rows is None else rows.to(device)
    ending = None if confidence is None else Ending(confidence.to(device), threshold, drawn)
    drafter = Drafter(model, warp or Warp(), verify, seed, addresses, size, max_new_tokens, process is not None, ending)
    text = Rows(model, ids, start, max_new_tokens, size, past=verify != "jacobi")
    stops = torch.tensor(stop_tokens, device=device)
    look_every = 1 if device.type == "cpu" else LOOK_EVERY

    def processed(logits: Tensor, ahead: int) -> Tensor:
        return logits if process is None else process(text.so_far(ahead), logits)

    hidden = text.read_prompts()
    first, first_log = drafter.begin(processed(model.context(hidden).first_logits(), 0))
    for step in range(max_new_tokens):
        proposal = drafter.propose(hidden, text.past(), first, text.written, step)
        block = proposal.block
        states = text.read(block)
        logits = model.context(states.flatten(0, 1)).first_logits().view(*block.shape, -1)
        if process is not None:
            logits = torch.stack([processed(logits[:, k], k + 1) for k in range(block.shape[1])], 1)
        judged = drafter.judge(logits, proposal, text.written, step)
        kept = judged.kept if replay is None else replay[:, step % replay.shape[1]]
        count = text.commit(kept, torch.cat([first_log[:, None], judged.log_p], 1), proposal.lengths)
        if watch is not None:
            watch(proposal.draft, drafter.target.log_prob(logits), count)
        text.close(block, count, stops, None if listen is None else listen(block, count))
        hidden, first, first_log = pick_state(states, kept), judged.first, judged.first_log
        look = step % look_every == look_every - 1 or (step + 1) * size >= max_new_tokens
        if look and not text.open.any():
            break
    return text.finish(stops, pad_token)


def _checked_size(
    model: Any, verify: str, asked: int | None, most: int, confidence: Confidence | None, drawn: bool
) -> int:
    """Tokens a pass judges; a ValueError where what is asked for does not go together."""
    if verify not in (*VERIFY, "none"):
        raise ValueError(f"verify {verify!r}: known are {', '.join(VERIFY)}, none")
    if confidence is not None and verify == "jacobi":
        raise ValueError("confidence is read off a head's draft, and verify jacobi has none")
    if drawn and verify != "none":
        raise ValueError(f"drawn: ending a draft for the value of its token is biased with verify {verify}; only none")
    size = (asked or 4) if verify == "jacobi" else block_size_of(model, asked)
    if size < 2:
        raise ValueError("verified decoding needs blocks of at least 2 tokens, so a model with a joint head")
    if most < 1:
        raise ValueError(f"max_new_tokens {most} must be 1 or above")
    return size
