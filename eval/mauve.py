"""MAUVE (2102.01454) of samples against real text, on the judge's own states: the area under the curve of two divergences.

The published numbers are on GPT-2's; these compare with each other, on one judge, one n and one length of text.
"""

from collections.abc import Sequence

import numpy as np
import torch

from eval.loading import LoadedRun
from training.data.tokenizer import start_token

FEWEST = 20
"""Texts: with fewer the clusters are of one or two."""


def mauve(judge: LoadedRun, real: Sequence[Sequence[int]], samples: Sequence[Sequence[int]], seed: int = 0) -> float:
    """real, samples: token lists of the judge. Between 0 and 1."""
    try:
        from mauve import compute_mauve
    except ImportError as error:
        raise ValueError("--mauve needs the package mauve-text: pip install 'leaplm[mauve]'") from error
    if min(len(real), len(samples)) < FEWEST:
        raise ValueError(f"--mauve needs {FEWEST} samples of each at least, here are {min(len(real), len(samples))}")
    features = [last_states(judge, texts) for texts in (real, samples)]
    got = compute_mauve(p_features=features[0], q_features=features[1], seed=seed, verbose=False)
    return float(got.mauve)


@torch.no_grad()
def last_states(judge: LoadedRun, texts: Sequence[Sequence[int]], batch: int = 16) -> np.ndarray:
    """(texts, width): the judge's state at the last token of each, fp32."""
    start, found = start_token(judge.tokenizer), []
    for low in range(0, len(texts), batch):
        rows = [[start, *text] for text in texts[low : low + batch]]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [start] * (longest - len(row)) for row in rows], device=judge.model.device)
        hidden, _ = judge.model.states(ids)
        found.append(hidden[torch.arange(len(rows)), [len(row) - 1 for row in rows]].float().cpu())
    return torch.cat(found).numpy()
