"""Fits the acceptance estimate of `mtp.decoding.confidence` on drafts at training prompts.

Every drafted position is an example with the rule's *exact* chance to keep it as its target, not a coin's fall, and the
chance that the token rule comes so far, Π_{j<k} a_j, as its weight: the mean over the rule's coins, in closed form.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from eval.loading import LoadedRun
from flowmap.warp import Warp
from mtp.decoding.confidence import Confidence, Estimate, features
from mtp.decoding.direct import pad_left
from mtp.decoding.speculative import decode_verified
from mtp.heads.base import Draft

Numbers = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Drafts:
    """x: (M, n, F) features; before, after: (M, n), the chances α_k and a_k; weight: (M, n), that the rule comes so far,
    0 past the end of what was written; prompt: (M,) which prompt the draft belongs to."""

    x: Numbers
    before: Numbers
    after: Numbers
    weight: Numbers
    prompt: np.ndarray


def draft_at(
    run: LoadedRun, starts: list[list[int]], warp: Warp, block: int, new: int, seed: int, batch: int
) -> Drafts:
    """The drafts of every pass while the token rule writes `new` tokens after each of starts."""
    found: list[tuple[Tensor, ...]] = []
    end = run.tokenizer.eos_token_id
    for low in tqdm(range(0, len(starts), batch), desc=f"drafts, K = {block}", leave=False, disable=None):
        part = torch.arange(low, min(low + batch, len(starts)))
        written = torch.zeros(len(part), dtype=torch.long)

        def watch(draft: Draft, log_p: Tensor, count: Tensor, part: Tensor = part, written: Tensor = written) -> None:
            before, after = chances(draft, log_p)
            reach = torch.nn.functional.pad(after.cumprod(1)[:, :-1], (1, 0), value=1.0)
            inside = written[:, None] + torch.arange(1, block) < new  # nothing past it is judged in earnest,
            inside &= ~(draft.tokens[:, :-1] == end).cummax(1).values.cpu()  # nor behind the text's end
            going = (count > 0).cpu()
            held = (features(draft).cpu(), before.cpu(), after.cpu(), reach.cpu() * inside, part)
            found.append(tuple(column[going] for column in held))
            written += count.cpu()

        decode_verified(
            run.model, *pad_left(starts[low : low + batch], end), max_new_tokens=new, warp=warp, seed=seed, rows=part,
            block_size=block, stop_tokens=(end,), pad_token=end, watch=watch,
        )  # fmt: skip
    x, before, after, weight, prompt = (torch.cat(column).double().numpy() for column in zip(*found, strict=True))
    return Drafts(x, before, after, weight, prompt.astype(int))


def chances(draft: Draft, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """(N, n): Σ_v min(p, q) and min(1, p/q) of the token drawn. log_p: (N, K, V), the trunk's law after each token."""
    n = draft.tokens.shape[1] - 1
    p, q = log_p[:, :n].exp(), torch.stack([draft.conditional(k) for k in range(1, n + 1)], 1).exp()
    chosen = draft.tokens[:, 1:, None]
    return torch.minimum(p, q).sum(-1).clamp_max(1), (p.gather(-1, chosen) / q.gather(-1, chosen))[..., 0].clamp_max(1)


def fit(drafts: Drafts, warp: Warp) -> Confidence:
    before = _fit(drafts.x[..., :-1], drafts.before, drafts.weight)
    return Confidence(before, _fit(drafts.x, drafts.after, drafts.weight), warp)


def _fit(x: Numbers, chance: Numbers, weight: Numbers) -> Estimate:
    """A logistic regression a position, each example once as kept and once as not, by its chance, or where the rule never
    came the position's before it; then the isotonic map of all their logits."""
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LogisticRegression

    if not weight[:, 0].any():
        raise ValueError("no drafted token was judged, so that nothing can be fitted: raise --new or --num")
    slopes: list[Numbers] = []
    offsets: list[float] = []
    for k in range(x.shape[1]):
        if not weight[:, k].any():
            slopes.append(slopes[-1])
            offsets.append(offsets[-1])
            continue
        model = LogisticRegression(max_iter=1000)
        kept = np.repeat([1, 0], len(x))
        share = np.concatenate([weight[:, k] * chance[:, k], weight[:, k] * (1 - chance[:, k])])
        model.fit(np.concatenate([x[:, k], x[:, k]]), kept, sample_weight=share)
        slopes.append(model.coef_[0])
        offsets.append(model.intercept_[0])
    slope, offset = (torch.tensor(np.array(part), dtype=torch.float32) for part in (slopes, offsets))
    unmapped = Estimate(slope, offset, torch.zeros(0), torch.zeros(0))
    logit, counted = unmapped.logit(torch.tensor(x).float()).numpy(), weight > 0
    line = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    line.fit(logit[counted], chance[counted], sample_weight=weight[counted])
    knots, first = np.unique(line.X_thresholds_.astype(np.float32), return_index=True)
    values = line.y_thresholds_[first].astype(np.float32)
    if len(knots) == 1:  # every draft alike
        knots, values = np.append(knots, knots + 1), np.append(values, values)
    return Estimate(unmapped.weight, unmapped.bias, torch.tensor(knots), torch.tensor(values))
