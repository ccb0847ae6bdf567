"""Batches of images as pure functions of (seed, step, sample): an epoch visits every image once."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flowmap.backbone import Context
from flowmap.rng import Rng


@dataclass(frozen=True)
class ImageBatch:
    """x_0: (batch, channels, height, width) in model space. label: (batch,) int64. told: the network sees the label."""

    x_0: Tensor
    label: Tensor
    told: bool = True

    @property
    def size(self) -> int:
        return len(self.label)

    @property
    def context(self) -> Context | None:
        return Context(label=self.label) if self.told else None

    def to(self, device: torch.device) -> "ImageBatch":
        x_0, label = (part.to(device, non_blocking=True) for part in (self.x_0, self.label))
        return ImageBatch(x_0, label, self.told)


class ImageBatches:
    """images: (n, c, h, w) in model space. labels: (n,). flip: mirror each image with probability one half.
    drop: the share of labels that become `no_label`, here and so once for everybody who looks at the batch; None: no
    network is told any.

    Row j of batch k is place k · batch_size + j of an endless walk; each n places are a fresh order of all images.
    """

    def __init__(
        self,
        images: Tensor,
        labels: np.ndarray | Tensor,
        batch_size: int,
        seed: int,
        flip: bool = False,
        drop: float | None = 0.0,
        no_label: int = 0,
    ) -> None:
        if len(images) != len(labels) or not len(images):
            raise ValueError(f"{len(images)} images and {len(labels)} labels: one label for each of at least one image")
        self.images, self.labels = images, torch.as_tensor(labels, dtype=torch.int64)
        self.batch_size, self.seed, self.flip = batch_size, seed, flip
        self.drop, self.no_label = drop, no_label

    def batch(self, step: int, samples: Tensor) -> ImageBatch:
        index = self.order(step, samples)
        x_0, label = self.images[index], self.labels[index]
        rng = Rng(self.seed, samples, step)
        if self.flip:
            mirrored = rng.uniform("flip", len(samples)) < 0.5
            x_0 = torch.where(mirrored[:, None, None, None], x_0.flip(-1), x_0)
        if self.drop:
            label = torch.where(rng.uniform("drop", len(samples)) < self.drop, self.no_label, label)
        return ImageBatch(x_0, label, self.drop is not None)

    def order(self, step: int, samples: Tensor) -> Tensor:
        """Which images make up these rows of global batch `step`."""
        place = step * self.batch_size + samples
        index = torch.empty_like(place)
        for epoch in (place // len(self.images)).unique().tolist():
            shuffled = torch.randperm(
                len(self.images), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            )
            here = place // len(self.images) == epoch
            index[here] = shuffled[place[here] % len(self.images)]
        return index
