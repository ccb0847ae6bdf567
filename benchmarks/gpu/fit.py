"""Training for a given time, or a given number of steps: a trunk on text, or a head on the states of a frozen one."""

import math
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowmap.rng import Rng
from mtp.objective import JointCrossEntropy
from training.data.windows import TextWindows

ANCHORS = 0.25
"""Of the positions, where a head is trained."""
WARMUP = 50


def fit(
    model: Any, windows: TextWindows, rate: float, until: float, most: float, states: Tensor | None = None
) -> float:
    """AdamW in bf16 autocast, cosine over whichever ends first: the clock (time.monotonic) or the steps at most. states:
    (windows, length, d) of the frozen trunk, then the head learns. Returns tokens per second."""
    objective = JointCrossEntropy(states is not None, anchor_fraction=1.0 if states is None else ANCHORS).train()
    weights = list((model if states is None else model.head).parameters())
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    device, samples = weights[0].device, torch.arange(windows.batch_size)
    start, step, done = time.monotonic(), 0, 0.0
    while done < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * done))
        index = windows.order(step, samples)
        batch = windows.windows(index).to(device)
        if states is not None:
            batch = replace(batch, hidden=states[torch.tensor(index, device=device)])
        with torch.autocast(device.type, torch.bfloat16):
            loss = objective(model, batch, rng=Rng(windows.seed, samples.to(device), step), step=step)
        (loss.sum / loss.count).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 10 == 0 and device.type == "cuda":
            torch.cuda.synchronize()  # so that the clock sees work done, not work asked for
        done = max((time.monotonic() - start) / max(until - start, 1e-9), step / most)
    return step * windows.batch_size * windows.length / (time.monotonic() - start)
