"""An image set by name as plain arrays, and its scaling between pixels and model space.

    x = (u8 / 127.5 − 1 − shift) · scale,  so that the training split has mean 0 and deviation σ_d = 0.5

one shift and one scale for all channels: a linear path wants data of one known variance (2503.07565).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from imm.sources import Split, read_named

SIGMA_DATA = 0.5
HELD_OUT = 0.2
"""Share of each class that becomes the test split of a set that has none."""


@dataclass(frozen=True)
class Scaling:
    """Two numbers that a model saves, so that its samples become pixels without the data at hand."""

    shift: float
    scale: float

    def to_model(self, pixels: np.ndarray | Tensor) -> Tensor:
        """uint8 (n, h, w, c) → float32 (n, c, h, w)."""
        x = torch.as_tensor(pixels).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return x.div_(127.5).sub_(1 + self.shift).mul_(self.scale)

    def to_pixels(self, x: Tensor) -> np.ndarray:
        """(n, c, h, w) → uint8 (n, h, w, c), rounded and clamped: the inverse on every byte."""
        pixels = x.detach().float().cpu().div(self.scale).add_(1 + self.shift).mul_(127.5)
        return pixels.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


@dataclass(frozen=True)
class Images:
    """train, test: uint8 (n, h, w, c). Labels: int64 (n,). fingerprint: of every pixel and label. split: what `test` is:
    "test", or "selection", a part of the training split that settings are chosen on."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    name: str
    fingerprint: str
    split: str = "test"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w), as in model space."""
        height, width, channels = self.train.shape[1:]
        return channels, height, width

    @cached_property
    def scaling(self) -> Scaling:
        """Fitted on the training split alone, exactly: from counts of its 256 values."""
        counts = np.bincount(self.train.reshape(-1), minlength=256)
        values, weights = np.arange(256) / 127.5 - 1, counts / counts.sum()
        mean = float(weights @ values)
        deviation = float(weights @ (values - mean) ** 2) ** 0.5
        if deviation == 0:
            raise ValueError(f"every pixel of {self.name!r} has the same value: there is nothing to learn")
        return Scaling(mean, SIGMA_DATA / deviation)


def load_images(name: str, root: str | None = None, size: int | None = None, selection: bool = False) -> Images:
    """name: digits, mnist, fashion-mnist, cifar10, a folder of class folders, or a Hub set ("owner/name").

    root: the folder of public sets, else LEAPLM_DATA. size: cut folder and Hub images square to so many
    pixels. selection: the test split is left alone, a fifth of the training split stands in its place. Raises ValueError
    with the mend where a set is not there.
    """
    train, test = read_named(name, root, size)
    if test is None:
        train, test = hold_out(train)
    if selection:
        train, test = hold_out(train)
    if train.images.shape[1:3] != test.images.shape[1:3]:
        sizes = f"{train.images.shape[1:3]} in train and {test.images.shape[1:3]} in test"
        raise ValueError(f"the images of {name!r} differ in size, {sizes}: give one size")
    channels = max(train.images.shape[3], test.images.shape[3])
    train, test = (s if s.images.shape[3] == channels else _coloured(s, channels) for s in (train, test))
    parts = (train.images, train.labels.astype(np.int64), test.images, test.labels.astype(np.int64))
    num_classes = int(max(train.labels.max(), test.labels.max())) + 1
    return Images(*parts, num_classes, name, fingerprint(parts), "selection" if selection else "test")


def hold_out(split: Split) -> tuple[Split, Split]:
    """The same share of each class. An image's own bytes decide where it goes, so no generator's version can
    move it, and copies of one image never stand on both sides."""
    digests = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in split.images])
    held = np.zeros(len(split.labels), dtype=bool)
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        ordered = np.sort(digests[members])
        if len(members) > 1:
            held[members] = digests[members] <= ordered[max(1, round(HELD_OUT * len(members))) - 1]
    if held.all() or not held.any():
        raise ValueError(f"{len(held)} images are too few to hold a test split out: give each class several")
    return Split(split.images[~held], split.labels[~held]), Split(split.images[held], split.labels[held])


def _coloured(split: Split, channels: int) -> Split:
    """A grey split beside one in colour."""
    return Split(split.images.repeat(channels, 3), split.labels)


def fingerprint(parts: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr((part.dtype.str, part.shape)).encode())
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()[:20]
