"""Interleaved timing: contenders take turns, so that what slows the machine slows all of them."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

STABLE = 0.1
"""An interval wider than ± this share of its median is no result."""


@dataclass(frozen=True)
class Ratio:
    """Median of the pair ratios, and its bootstrap 95% interval."""

    value: float
    low: float
    high: float

    @property
    def stable(self) -> bool:
        return (self.high - self.low) / 2 <= STABLE * self.value


def interleaved(
    contenders: Mapping[str, Callable[[], object]], rounds: int, title: str, quiet: bool = False
) -> dict[str, np.ndarray]:
    """Seconds of every contender in every round, (rounds,); each once a round, the order turning; one
    round of warm-up that is not kept."""
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for n in tqdm(range(rounds + 1), desc=title, disable=True if quiet else None, leave=False):
        for name in names[n % len(names) :] + names[: n % len(names)]:
            start = time.perf_counter()
            contenders[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if n > 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def pair_ratio(slow: np.ndarray, fast: np.ndarray, resamples: int = 2000) -> Ratio:
    """slow, fast: (rounds,) seconds of the same rounds → slow / fast."""
    ratios = slow / fast
    picks = np.random.default_rng(0).integers(len(ratios), size=(resamples, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), [0.025, 0.975])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def load_average() -> float:
    """Of the last minute: what else the machine was doing."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
