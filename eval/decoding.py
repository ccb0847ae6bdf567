"""Many prompts decoded in batches: what probes and samples share."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from eval.loading import LoadedRun
from flowmap.warp import Warp
from mtp.decoding.confidence import load_confidence
from mtp.decoding.direct import Decoded, decode, pad_left
from mtp.decoding.speculative import decode_verified


def decode_all(
    run: LoadedRun,
    starts: Sequence[list[int]],
    *,
    new: int,
    warp: Warp,
    seed: int,
    block: int | None,
    batch: int,
    stops: bool = True,
    skip: int = 0,
    threshold: float | None = None,
    drawn: bool = False,
    verify: str = "none",
) -> Iterator[tuple[slice, Decoded]]:
    """starts: token lists → which of them, and what follows each. A row's draw depends on its place in starts
    alone, not on the batch. stops: end a row at the end token. skip: so many of the first are left out. threshold: of each block only what the run's own
    acceptance estimate has above it, unjudged; drawn: see `decode_verified`. verify: a rule by which the trunk judges drafts."""
    end = run.tokenizer.eos_token_id
    options: dict[str, Any] = {
        "max_new_tokens": new, "warp": warp, "seed": seed, "block_size": block, "pad_token": end,
        "stop_tokens": (end,) if stops else (),
    }  # fmt: skip
    write: Callable[..., Decoded] = decode
    if verify != "none":
        write = decode_verified
        options |= {"verify": verify}
    if threshold is not None:
        write = decode_verified
        confidence = load_confidence(Path(run.folder), warp)
        options |= {"verify": "none", "confidence": confidence, "threshold": threshold, "drawn": drawn}
    for low in range(skip, len(starts), batch):
        part = slice(low, min(low + batch, len(starts)))
        rows = torch.arange(part.start, part.stop)
        yield part, write(run.model, *pad_left(list(starts[part]), end), rows=rows, **options)
