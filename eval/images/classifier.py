"""The feature extractor of image metrics: a small convnet trained on the training split, once, and kept.

Two FIDs can be compared only if one network gave both: its hash goes into every record.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from imm.batch import ImageBatches
from imm.data import Images, Scaling
from training.cache import cache_root

VERSION = 1
"""Raised when the network or its training changes, so that an old file is not taken for a new one."""
TINY = 16
"""Up to this side nothing is strided away at once, 64 features do, and 600 steps instead of 1,500."""
BATCH, RATE = 128, 2e-3


class Network(nn.Module):
    """Three convolutions, features, class logits. The covariance of d features is well conditioned only if there
    are many more test images than d, and tiny images come in small sets."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, size = shape[0], min(shape[1:])
        tiny = size <= TINY
        width = 64 if tiny else 128
        layers: list[nn.Module] = []
        for wide, stride in ((32, 1 if tiny else 2), (64, 2), (64, 2)):
            layers += [nn.Conv2d(channels, wide, 3, stride, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU()]
            channels = wide
        side = min(4, -(-size // (4 if tiny else 8)))
        pool = [nn.AdaptiveAvgPool2d(side), nn.Flatten()]
        self.body = nn.Sequential(*layers, *pool, nn.Linear(channels * side**2, width), nn.SiLU())  # no dead features
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@dataclass(frozen=True)
class Classifier:
    """accuracy: on the test split. digest: of the weights."""

    network: Network
    scaling: Scaling
    accuracy: float
    digest: str

    @torch.no_grad()
    def __call__(self, pixels: np.ndarray, batch: int = 500) -> tuple[Tensor, Tensor]:
        """uint8 (n, h, w, c) → features (n, width) and logits (n, classes), both float64."""
        features = torch.cat(
            [
                self.network.body(self.scaling.to_model(pixels[low : low + batch]))
                for low in range(0, len(pixels), batch)
            ]
        )
        return features.double(), self.network.head(features).double()


def load_classifier(images: Images, seed: int = 0, steps: int | None = None) -> Classifier:
    """The classifier of this very data, trained if it is not in the cache; steps: of its training."""
    steps = steps or (600 if min(images.shape[1:]) <= TINY else 1500)
    key = json.dumps([VERSION, images.fingerprint, seed, steps])
    name = hashlib.sha256(key.encode()).hexdigest()[:20]
    path = cache_root() / "classifiers" / f"{name}.safetensors"
    network = Network(images.shape, images.num_classes)
    if not path.is_file():
        network = train_network(images, seed, steps)
        _keep(path, network, accuracy_on_test(network, images))
    with safe_open(path, "pt") as file:
        network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        accuracy = float(file.metadata()["accuracy"])
    return Classifier(network.eval(), images.scaling, accuracy, weights_digest(network))


def train_network(images: Images, seed: int, steps: int) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(images.shape, images.num_classes)
    batches = ImageBatches(images.scaling.to_model(images.train), images.train_labels, BATCH, seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for step in range(steps):
        batch = batches.batch(step, torch.arange(BATCH))
        loss = F.cross_entropy(network(batch.x_0), batch.label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def accuracy_on_test(network: Network, images: Images) -> float:
    _, logits = Classifier(network, images.scaling, 0.0, "")(images.test)
    return float((logits.argmax(1).numpy() == images.test_labels).mean())


def weights_digest(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()[:12]


def _keep(path: Path, network: Network, accuracy: float) -> None:
    """Atomically: two processes that train at once write the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    save_file(network.state_dict(), partial, metadata={"accuracy": repr(accuracy)})
    partial.replace(path)
