"""Samples against the test split as records, beside what real images score in their place.

FID, KID, precision and recall compare features of the classifier; energy distance, sliced W₂ and the distance
to the nearest training image compare pixels, as vectors of values in [0, 1]. Every number is to be read beside its
floor: FID and sliced W₂ are biased upward at finite n, and where the test split was held out class by class (digits)
KID and energy distance fall below zero, since its own pairs share a class more rarely than chance would have it.
"""

from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.images.classifier import Classifier, load_classifier
from eval.images.distances import (
    Estimate,
    histogram_entropy,
    inside,
    mean_of,
    nearest,
    negative_distance,
    sliced_w2,
    squared_mmd,
    within,
)
from eval.images.inception import Inception
from eval.images.metrics import Frechet, inception_score, kid
from eval.records import record
from flowmap.rng import Rng
from imm.data import Images

Records = list[dict[str, Any]]
UNITS = {
    "classifier_fid": "squared feature distance", "kid": "squared feature mmd", "inception_score": "classes",
    "energy_distance": "pixel distance", "sliced_w2": "pixel distance", "precision": "fraction",
    "recall": "fraction", "entropy": "nats", "nearest_train_distance": "pixel distance",
    "inception_fid": "squared feature distance",
}  # fmt: skip
OF_FEATURES = ("classifier_fid", "kid", "inception_score", "precision", "recall", "entropy")
DIRECTIONS, RESAMPLES, NEIGHBOURS, FEWEST = 256, 20, 3, 10


def score_images(
    samples: np.ndarray | Tensor, images: Images, seed: int, subject: str = "samples", **more: Any
) -> Records:
    """Every metric of the samples, then the floors: what training images (without and with replacement) and test
    images score in their place. more: run, train_seed, sample_seed, contract of the samples' records."""
    scorer = ImageScorer(images, seed)
    return scorer.score(samples, subject, **more) + scorer.floors(len(samples))


class ImageScorer:
    """Keeps what depends on the data alone. samples are uint8 (n, h, w, c), or floats (n, c, h, w) in model space.

    seed: of projections, subsets and resamples, and of which images stand for the floor; never of the
    classifier, which all seeds share. inception: adds the FID on its features, to the test split too and without
    an error, since to take 2,048 features' covariance again and again costs minutes.
    """

    def __init__(
        self,
        images: Images,
        seed: int = 0,
        classifier: Classifier | None = None,
        inception: Inception | None = None,
    ) -> None:
        self.images, self.seed, self.rng = images, seed, Rng(seed)
        self.classifier = classifier or load_classifier(images)
        self.split = images.split
        self.test = images.test[self._order("test", len(images.test))]
        self.features, self.logits = self.classifier(self.test)
        self.frechet = Frechet(self.features)
        self.inception = inception
        self.inception_frechet = Frechet(inception(self.test)) if inception else None
        self.pixels = _flat(self.test)
        self.directions = torch.nn.functional.normalize(
            self.rng.normal("directions", self.pixels.shape[1], DIRECTIONS), dim=0
        )
        self.floors = cache(self._floors)

    def fid(self, samples: np.ndarray | Tensor) -> float:
        """Classifier-FID alone: milliseconds a call, for tables over many step counts."""
        return self.frechet(self.classifier(self._as_pixels(samples))[0])

    def score(self, samples: np.ndarray | Tensor, subject: str = "samples", **more: Any) -> Records:
        pixels = self._as_pixels(samples)
        found = self._against_test(pixels)
        found["nearest_train_distance"] = mean_of(nearest(_flat(pixels), self._train))
        return self._records(found, subject, len(pixels), **more)

    def _floors(self, n: int) -> Records:
        train = self.images.train
        drawn = train[self._order("train", len(train))[:n]]
        resampled = train[(self.rng.uniform("resampled", n, dtype=torch.float64) * len(train)).long().numpy()]
        some = self.pixels[:n]
        own = {
            "entropy": histogram_entropy(self.logits.argmax(1), self.images.num_classes),
            "inception_score": inception_score(self.logits),
        }
        near = {"nearest_train_distance": mean_of(nearest(some, self._train))}
        again = {"classifier_fid": self.frechet.estimate(self.classifier(resampled)[0], self._resamples(n))}
        return [
            *self._records(self._against_test(drawn), "train", len(drawn)),
            *self._records(again, "train-resampled", n),
            *self._records(own, "test", len(self.test)),
            *self._records(near, "test", len(some)),
        ]

    def _against_test(self, pixels: np.ndarray) -> dict[str, Estimate]:
        """Everything but memorising, of any images in the samples' place."""
        features, logits = self.classifier(pixels)
        flat, resamples = _flat(pixels), self._resamples(len(pixels))
        some = features[self._order("samples", len(features))][: len(self.features)]  # as many on either side
        real = self.features[: len(some)]
        centre = self.pixels.mean(0)  # small norms keep fp32 distances exact
        more = {}
        if self.inception is not None and self.inception_frechet is not None:
            more["inception_fid"] = Estimate(self.inception_frechet(self.inception(pixels)))
        return {
            "classifier_fid": self.frechet.estimate(features, resamples),
            "kid": kid(features, self.features, self.seed),
            "inception_score": inception_score(logits),
            "energy_distance": squared_mmd(negative_distance, flat - centre, self.pixels - centre, self._within_test),
            "sliced_w2": sliced_w2(flat, self.pixels, self.directions, resamples),
            "precision": mean_of(inside(some, real, NEIGHBOURS)),
            "recall": mean_of(inside(real, some, NEIGHBOURS)),
            "entropy": histogram_entropy(logits.argmax(1), self.images.num_classes),
            **more,
        }

    @cached_property
    def _train(self) -> Tensor:
        return _flat(self.images.train)

    @cached_property
    def _within_test(self) -> float:
        return float(within(negative_distance, self.pixels - self.pixels.mean(0)).mean())

    def _as_pixels(self, samples: np.ndarray | Tensor) -> np.ndarray:
        if len(samples) < FEWEST:
            raise ValueError(f"{len(samples)} samples are too few to score: draw at least {FEWEST}")
        if isinstance(samples, Tensor) and samples.is_floating_point():
            if not samples.isfinite().all():
                raise ValueError("the samples hold values that are not finite: the sampler diverged")
            pixels = self.images.scaling.to_pixels(samples)
        else:
            pixels = samples.cpu().numpy() if isinstance(samples, Tensor) else np.asarray(samples)
        wanted = self.images.test.shape[1:]
        if pixels.dtype != np.uint8 or pixels.shape[1:] != wanted:
            raise ValueError(f"samples are {pixels.dtype} {pixels.shape[1:]}; {self.images.name} has uint8 {wanted}")
        return pixels

    def _order(self, name: str, n: int) -> np.ndarray:
        return self.rng.uniform(name, n, dtype=torch.float64).argsort().numpy()

    def _resamples(self, n: int) -> Tensor:
        return self.rng.uniform("bootstrap", RESAMPLES, n, dtype=torch.float64)

    def _records(self, found: dict[str, Estimate], subject: str, n: int, **more: Any) -> Records:
        network = {"classifier": self.classifier.digest, "classifier_accuracy": self.classifier.accuracy}
        inception = {"inception": self.inception.digest} if self.inception else {}
        data = {"data": self.images.fingerprint, "num_train": len(self.images.train), "num_test": len(self.test)}
        return [
            record(
                metric, estimate.value, on=self.images.name, subject=subject, kind="estimate", unit=UNITS[metric],
                stderr=estimate.stderr, stderr_over="samples", n=n, split=self.split, score_seed=self.seed,
                **(network if metric in OF_FEATURES else inception if metric == "inception_fid" else {}), **data, **more,
            )
            for metric, estimate in found.items()
        ]  # fmt: skip


def _flat(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.reshape(len(pixels), -1)).float() / 255
