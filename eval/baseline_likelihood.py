"""What windows cost under the baselines of a flow language model: an autoregressive model exactly, masked diffusion by its NELBO."""

from collections.abc import Iterator

import torch

from eval.flow import FlowRun
from flowlm.discrete.base import unknown
from flowlm.discrete.likelihood import exact_nll, nelbo
from flowlm.likelihood import Score
from flowmap.objectives.tokens import TokenStates
from flowmap.rng import Rng

ESTIMATOR = {"leaplm-autoregressive": "exact", "leaplm-masked-diffusion": "nelbo"}
"""The one estimator of each model type."""
BATCH = 64
"""Windows scored at once."""


def score_windows(run: FlowRun, states: TokenStates, rng: Rng, calls: int) -> Score:
    """rng: addressed, one sample a window. calls: of the network for each window; the exact score takes one."""
    parts = [_score(run, states[rows], rng[rows], calls) for rows in _slices(states)]
    repeats = torch.cat([part.repeats for part in parts], 1).cpu()
    tokens = unknown(states).sum(1).double().cpu()
    if parts[0].kind == "exact":
        return Score(repeats[0], tokens, "exact", (), nfe=1)
    return Score.of({"nelbo": repeats}, tokens, parts[0].kind, nfe=calls)


def _score(run: FlowRun, states: TokenStates, rng: Rng, calls: int):
    if ESTIMATOR[run.model.config.model_type] == "exact":
        return exact_nll(run.model.map, states)
    return nelbo(run.model.map, states, rng, calls)


def _slices(states: TokenStates) -> Iterator[torch.Tensor]:
    yield from torch.arange(states.size, device=states.tokens.device).split(BATCH)
