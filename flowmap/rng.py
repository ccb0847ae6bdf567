"""Addressed randomness: every number is a pure function of (seed, batch, sample, name, element).

Philox4x32-10 (Salmon et al., SC 2011), written in torch integer arithmetic and, for CPUs, in numpy's, which has words
of 64 bits without a sign and calls that cost less. A sample's noise does not depend on which rank, slice or device draws it,
so world size, gradient accumulation and a restart change nothing: sample j of global batch n always sees the same numbers.
"""

import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
CACHED = 2**14
"""Counters that are enciphered at once on a CPU."""


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int], rounds: int = 10
) -> tuple[Tensor, ...]:
    """The block cipher itself: four int64 tensors holding 32-bit words in, four out."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        high_0, low_0 = _multiply(c0, _MULTIPLIERS[0])
        high_1, low_1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def _multiply(word: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """32 × 32 → 64 bits as (high, low) words; 16-bit halves keep int64 from overflowing."""
    low_product = (word & 0xFFFF) * constant
    high_product = (word >> 16) * constant + (low_product >> 16)
    return high_product >> 16, ((high_product & 0xFFFF) << 16) | (low_product & 0xFFFF)


def philox4x32_numpy(counter: tuple[np.ndarray, ...], key: tuple[int, int], rounds: int = 10) -> tuple[np.ndarray, ...]:
    """The same on uint64 words."""
    c0, c1, c2, c3 = counter
    k0, k1 = (np.uint64(k) for k in key)
    low, half = np.uint64(_LOW), np.uint64(32)
    m0, m1 = (np.uint64(m) for m in _MULTIPLIERS)
    w0, w1 = (np.uint64(w) for w in _WEYL)
    for _ in range(rounds):
        p0, p1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & low, (p0 >> half) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + w0) & low, (k1 + w1) & low
    return c0, c1, c2, c3


@dataclass(frozen=True)
class Rng:
    """The random numbers of a slice of one global batch.

    seed: the run's seed. samples: (slice,) int64, each sample's index j in the global batch
    (None: one nameless sample, shapes are free). batch: the global batch's index n, or (slice,) one a sample.
    spread: samples in the global batch, over which `place` is to be even; None: independent.
    Draws are made by name, so adding a draw never shifts another.
    """

    seed: int
    samples: Tensor | None = None
    batch: int | Tensor = 0
    spread: int | None = None

    def uniform(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """U[0, 1) of shape (slice, *rest), where shape = (slice, *rest)."""
        bits = self._bits(name, shape)
        if dtype == torch.float64:
            return bits.to(dtype) * 2.0**-32
        return (bits >> 8).to(dtype) * 2.0**-24

    def normal(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """N(0, 1) by Box–Muller, in float64 inside; tails reach 6.6 deviations."""
        radius = (self._bits(name, shape).double() + 1).mul_(2.0**-32).log_().mul_(-2).sqrt_()
        angle = self._bits(name + "/angle", shape).double().mul_(2.0**-32 * 2 * math.pi)
        return (radius * angle.cos_()).to(dtype)

    def place(self, name: str, count: int) -> Tensor:
        """U[0, 1) of every sample, (slice,), float64. With `spread` the B places of a global batch are an even grid at a
        random shift (2107.00630, I.1), in a random order, so that two names are independent of each other:

            u_j = frac(shift + order(j)/B),   shift and order of (seed, batch, name) alone
        """
        if self.spread is None:
            return self.uniform(name, count, dtype=torch.float64)
        if self.samples is None or isinstance(self.batch, Tensor) or int(self.samples.max()) >= self.spread:
            raise ValueError(
                f"places are spread over the {self.spread} samples of one global batch: give their indices"
            )
        everyone = Rng(self.seed, torch.arange(self.spread, device=self.device), self.batch)
        order = everyone.uniform(name + "/order", self.spread, dtype=torch.float64).argsort(stable=True).argsort()
        shift = Rng(self.seed, self.samples[:1] * 0, self.batch).uniform(name + "/shift", 1, dtype=torch.float64)
        return (shift + order[self.samples].double() / self.spread) % 1

    @property
    def device(self) -> torch.device:
        """Where draws are made."""
        return torch.device("cpu") if self.samples is None else self.samples.device

    def groups(self, size: int) -> "Rng":
        """The randomness of whole groups of `size` consecutive samples: one draw for all their members."""
        if self.samples is None or len(self.samples) % size or (self.samples[0] % size != 0):
            raise ValueError(f"a slice must hold whole groups of {size} samples")
        spread = None if self.spread is None else self.spread // size
        return Rng(self.seed, self.samples[::size] // size, self.batch, spread)

    def parts(self, count: int) -> "Rng":
        """Of every sample `count` numbered parts, one after the other, each with randomness of its own."""
        if self.samples is None:
            return self
        part = torch.arange(count, device=self.device)
        batch = self.batch.repeat_interleave(count) if isinstance(self.batch, Tensor) else self.batch
        spread = None if self.spread is None else self.spread * count
        return Rng(self.seed, (self.samples[:, None] * count + part).flatten(), batch, spread)

    def __getitem__(self, rows: Any) -> "Rng":
        """That of some of the samples."""
        if self.samples is None:
            raise ValueError("nameless samples have no rows to take")
        return Rng(self.seed, self.samples[rows], self.batch[rows] if isinstance(self.batch, Tensor) else self.batch)

    def _bits(self, name: str, shape: tuple[int, ...]) -> Tensor:
        samples = self.samples
        if samples is None:
            samples, per_sample = torch.zeros(1, dtype=torch.int64), math.prod(shape)
        else:
            if not shape or shape[0] != len(samples):
                raise ValueError(f"shape {shape} must start with the slice's {len(samples)} samples")
            per_sample = math.prod(shape[1:])
        count = -(-per_sample // 4)
        key = (self.seed & _LOW, ((self.seed >> 32) ^ zlib.crc32(name.encode())) & _LOW)
        batch = torch.as_tensor(self.batch, device=samples.device).expand(len(samples))
        draw = _words_numpy if samples.device.type == "cpu" else _words
        return draw(samples, batch, count, key).flatten(1)[:, :per_sample].reshape(shape)


def _words(samples: Tensor, batch: Tensor, count: int, key: tuple[int, int]) -> Tensor:
    """samples, batch: (slice,) → (slice, count, 4) int64 of 32 bits."""
    element = torch.arange(count, device=samples.device).expand(len(samples), count)
    sample, low, high = (x[:, None].expand_as(element) & _LOW for x in (samples, batch, batch >> 32))
    return torch.stack(philox4x32((element, sample, low, high), key), -1)


def _words_numpy(samples: Tensor, batch: Tensor, count: int, key: tuple[int, int]) -> Tensor:
    """The same; some samples at a time, so that all words of a round stay in the cache."""
    rows = [(x & _LOW).numpy().astype(np.uint64)[:, None] for x in (samples, batch, batch >> 32)]
    element = np.arange(count, dtype=np.uint64)[None]
    words = np.empty((len(samples), count, 4), dtype=np.int64)
    together = max(1, CACHED // max(count, 1))
    for first in range(0, len(samples), together):
        part = slice(first, first + together)
        sample, low, high = (x[part] for x in rows)
        for i, word in enumerate(philox4x32_numpy((element, sample, low, high), key)):
            words[part, :, i] = word
    return torch.from_numpy(words)
