"""The noise with which the trunk would have written a text: u_k uniform in the slice of x_k in its CDF after x_<k.

For tokens that the trunk drew, u_k is uniform on [0, 1) and independent of all before it (2512.21323 §3); for others it
falls where they are more frequent than the trunk has it. A place's slice is the same for every block that holds it, so
the trunk's logits are formed once a place.
"""

import torch
from torch import Tensor, nn

from mtp.decoding.slices import slice_of
from mtp.heads.base import BlockContext
from mtp.losses.linear_nll import chunk_rows


@torch.no_grad()
def text_noise(ctx: BlockContext, share: Tensor) -> tuple[Tensor, Tensor]:
    """u_2..u_{M+1} of every anchor's block of the text, (N, M), and which of them the window's states tell, (N, M).
    share: (N, M) uniforms, where in its slice each lies. Needs a `past` whose blocks are the text's."""
    past = ctx.past
    if past is None or not past.text:
        raise ValueError("the noise of a text is read off the trunk's states along it: give the context its past")
    place = past.place[:, None] + 1 + torch.arange(share.shape[1], device=share.device)
    last = min(past.hidden.shape[1], past.tokens.shape[1] - 1) - 1
    known, place, row = place <= last, place.clamp_max(last), past.row[:, None].expand_as(place)
    asked = torch.zeros(past.hidden.shape[:2], dtype=torch.bool, device=share.device)
    asked[row[known], place[known]] = True
    rows, places = torch.nonzero(asked, as_tuple=True)
    low, width = torch.zeros(2, *asked.shape, dtype=torch.float64, device=share.device)
    size, dtype = chunk_rows(len(ctx.unembedding)), ctx.unembedding.dtype
    with torch.autocast(share.device.type, enabled=False):  # the slices of the law as it is decoded with
        for r, p in zip(rows.split(size), places.split(size), strict=True):
            logits = nn.functional.linear(past.hidden[r, p].to(dtype), ctx.unembedding, ctx.bias)
            low[r, p], width[r, p] = slice_of(logits.float().softmax(-1), past.tokens[r, p + 1])
    return low[row, place] + width[row, place] * share, known
