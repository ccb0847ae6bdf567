"""Many prompts decoded in batches: what probes and samples share."""

from collections.abc import Iterator, Sequence

import torch

from eval.loading import LoadedRun
from mtp.decoding.direct import Decoded, decode, pad_left
from mtp.decoding.warp import Warp


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
) -> Iterator[tuple[slice, Decoded]]:
    """starts: token lists → which of them, and what follows each. A row's draw depends on its place in starts
    alone, not on the batch. stops: end a row at the end token. skip: so many of the first are left out."""
    end = run.tokenizer.eos_token_id
    for low in range(skip, len(starts), batch):
        part = starts[low : low + batch]
        yield (
            slice(low, low + len(part)),
            decode(
                run.model,
                *pad_left(list(part), end),
                max_new_tokens=new,
                warp=warp,
                seed=seed,
                rows=torch.arange(low, low + len(part)),
                block_size=block,
                stop_tokens=(end,) if stops else (),
                pad_token=end,
            ),
        )
