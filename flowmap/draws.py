"""Laws that are means over noise: how a mean over draws is reported, and which random numbers its draws take."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmap.rng import Rng


@dataclass(frozen=True)
class Estimate:
    """log_prob: (N, …) nats, the logarithm of a mean over draws, so too low on average: −log_prob bounds the NLL from
    above in expectation. stderr: alike, by the delta method; itself too small where few draws carry the mean."""

    log_prob: Tensor
    stderr: Tensor

    @classmethod
    def of(cls, log_p: Tensor) -> "Estimate":
        """log_p: (N, draws, …), of each row's draws."""
        draws = log_p.shape[1]
        mean = log_p.logsumexp(1) - math.log(draws)
        spread = ((log_p - mean[:, None]).exp() - 1).square().sum(1)
        return cls(mean, (spread / (draws * (draws - 1))).sqrt())


def every_draw(num_rows: int, draws: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and number of every draw, (N · draws,) each, row by row."""
    if draws < 2:
        raise ValueError(f"draws {draws}: a standard error takes 2 at least")
    rows = torch.arange(num_rows, device=device)
    return rows.repeat_interleave(draws), torch.arange(draws, device=device).repeat(num_rows)


def rows_of(rng: Rng, rows: Tensor, draw: Tensor | int = 0) -> Rng:
    """The randomness of some rows, one draw of many where `draw` counts them."""
    if rng.samples is None:
        raise ValueError("rng must be addressed: Rng(seed, samples), one sample an anchor")
    batch = rng.batch if isinstance(rng.batch, int) else rng.batch.to(rows.device)[rows]
    return Rng(rng.seed, rng.samples.to(rows.device)[rows], batch + (draw << 32))
