"""−log P of a sampler where its answers can be listed: one noise serves them all.

    P̂(x) = mean_z Π_l p(x^l | z),      −log P̂ ≥ −log P in expectation: a bound, by half of Var P̂/P² too large

Over all of V^L, Σ_x P̂(x) = 1 whatever the draws are. The error of the mean over texts and the bias come by the jackknife over
groups of draws, since answers share their noise.
"""

import math
from typing import Any

import torch
from torch import Tensor

from flowlm.blocks import Blocks
from flowlm.likelihood.denoiser import check
from flowlm.likelihood.laws import Law
from flowlm.likelihood.score import Part, Score
from flowlm.likelihood.terms import NUMBERS
from flowmap.rng import Rng

GROUPS = 50


@torch.no_grad()
def enumerated(
    law: Law, answers: Tensor, seed: int, draws: int = 4096, context: Any = None, scored: Tensor | None = None
) -> Score:
    """answers: (A, N) tokens. context: one row, of all of them, and so no blocks, which stand behind a text each. scored: (N,) bool, the tokens that are counted. draws: of the
    noise, 50 at least."""
    if isinstance(context, Blocks):
        raise ValueError(
            "answers in blocks stand behind text of their own, which no noise can share: score them by importance"
        )
    check(law.model, answers, context)
    if draws < GROUPS:
        raise ValueError(f"{draws} draws of the noise: {GROUPS} at least, for the error of their mean")
    codebook, length = law.model.codebook, answers.shape[1]
    like = codebook.encode(answers[:1])
    size = max(1, NUMBERS // (length * (codebook.size + codebook.state_size) + answers.numel()))
    found = []
    for part in torch.arange(draws, device=answers.device).split(size):
        rng = Rng(seed, part)
        told = None if context is None else context[torch.zeros_like(part)]
        z = law.model.path.draw_noise(rng, "z", like.expand(len(part), *like.shape[1:]))
        log_p = law.last(z, rng, told).double().log_softmax(-1)
        found.append(sum(log_p[:, n, answers[:, n]] for n in range(length)).cpu())  # type: ignore[union-attr]
    log_p = torch.cat(found)  # (draws, A)
    counted = float(length if scored is None else scored.sum())
    tokens = torch.full((len(answers),), counted, dtype=torch.float64)
    return of_draws(log_p, tokens, draws * law.nfe, shared=True)


def of_draws(log_p: Tensor, tokens: Tensor, nfe: float, shared: bool, **details: Any) -> Score:
    """log_p: (draws, B) nats whose mean over draws in probability is P, or (draws, B, G) of the parts of which P is a product,
    each a mean of its own. nats are −log of that. shared: the
    draws served all. parts: the jackknife's pseudo-values over groups of draws, whose mean, in details, is nearly without
    bias."""
    draws = len(log_p)
    log_p = log_p.view(draws, len(tokens), -1)
    nats = math.log(draws) - log_p.logsumexp(0)
    groups = min(GROUPS, draws)
    sums = torch.stack([part.logsumexp(0) for part in log_p.tensor_split(groups)])
    held = torch.tensor([len(part) for part in torch.arange(draws).tensor_split(groups)], dtype=torch.float64)[
        :, None, None
    ]
    share = (sums - log_p.logsumexp(0)).exp().clamp(max=1 - 1e-12)
    without = nats - torch.log1p(-share) - math.log(draws) + (draws - held).log()  # −log of the others' mean
    pseudo = groups * nats - (groups - 1) * without
    pseudo, nats = pseudo.sum(2), nats.sum(1)
    less_biased = float(pseudo.mean(0).sum() / tokens.sum())
    told = {"jackknife": less_biased, "draws": draws, **details}
    return Score(nats, tokens, "bound", (Part(pseudo, shared),), nfe, told, fair="probability")
