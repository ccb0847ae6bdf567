"""A frozen trunk's states, computed once and read back by every head trained on them."""

import os
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mtp.batch import TokenBatch
from training.cache import cache_root
from training.data.windows import TextWindows


class CachedWindows:
    """Windows of text with the trunk's states beside them, fp32, memory-mapped."""

    def __init__(self, windows: TextWindows, states: np.ndarray) -> None:
        self.windows, self.states = windows, states
        self.batch_size = windows.batch_size

    def batch(self, n: int, samples: Tensor) -> TokenBatch:
        index = self.windows.order(n, samples)
        batch = self.windows.windows(index)
        hidden = torch.from_numpy(self.states[np.asarray(index)])
        return replace(batch, hidden=hidden)


@torch.no_grad()
def cache_states(
    model: Any, windows: TextWindows, key: str, device: torch.device, rows: int = 16, progress: bool = True
) -> CachedWindows:
    """model: anything with `states(ids)`; key: names trunk weights and corpus, to find the states again."""
    folder = cache_root() / "states"
    file = folder / f"{key}-{windows.length}.npy"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        width = model.get_output_embeddings().weight.shape[1]
        shape = (windows.num_windows, windows.length, width)
        needed = 4 * int(np.prod(shape))
        if needed > shutil.disk_usage(folder).free:
            raise ValueError(
                f"caching the trunk's states takes {needed / 1e9:.0f} GB in {folder}: set trunk.cache_states to false"
            )
        partial = file.with_name(f"{file.name}.partial-{os.getpid()}")
        states = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
        bar = tqdm(
            range(0, windows.num_windows, rows), desc="trunk states", disable=None if progress else True, leave=False
        )
        for start in bar:
            batch = windows.windows(range(start, min(start + rows, windows.num_windows)))
            hidden, _ = model.states(batch.inputs.to(device))
            states[start : start + len(hidden)] = hidden.float().cpu().numpy()
        states.flush()
        partial.rename(file)
    return CachedWindows(windows, np.load(file, mmap_mode="r"))
