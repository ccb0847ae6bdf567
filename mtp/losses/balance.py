"""Load balancing of a mixture's components, window by window.

    L = Σ_windows n · CV²(π̄),   CV²(π̄) = r Σ_z π̄_z² − 1,   π̄_z = 1/n Σ_anchors π_z(h, x_1)

the squared coefficient of variation of the components' mean weight (1701.06538, eq. 6–7; a mixture over blocks takes
one in 2410.17765), 0 where all are used alike and r − 1 where one does everything. π is the prior: collapse happens
there, and a component without prior gets no gradient from the likelihood. The posterior is meant to be sharp.

A mean over the whole batch would tie its rows together. Means are taken within a window instead (as the sequence-wise
loss of 2412.19437, eq. 17–20), and a window never straddles a slice: micro-batches and ranks change nothing. Where a
window has a single anchor, as rows of a suite can, each prior is drawn to uniform by itself: keep the coefficient small.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Balance:
    """Sums over anchors. loss: n · CV², to differentiate; entropy: n · H(π̄) in nats, detached."""

    loss: Tensor
    entropy: Tensor


def balance(log_prior: Tensor, rows: Tensor, num_rows: int) -> Balance:
    """log_prior: (N, r), log π of every anchor. rows: (N,), the window each anchor stands in."""
    count = torch.zeros(num_rows, device=rows.device).index_add(0, rows, torch.ones(len(rows), device=rows.device))
    total = log_prior.new_zeros(num_rows, log_prior.shape[-1]).index_add(0, rows, log_prior.exp())
    usage = total / count.clamp_min(1)[:, None]
    variation = log_prior.shape[-1] * usage.square().sum(-1) - 1
    entropy = torch.special.entr(usage.detach()).sum(-1)
    return Balance((count * variation).sum(), (count * entropy).sum())
