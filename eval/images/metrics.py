"""FID, KID and Inception Score by torchmetrics, on features that were extracted once.

Its metrics take a network as extractor; ours is run once over each set, so what they get is the identity.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from eval.images.distances import Estimate, bootstrap, polynomial, squared_mmd

SUBSETS, SUBSET_SIZE = 50, 1000
"""KID: the mean over so many random subsets of so many points."""


class Given(nn.Module):
    """Images are their features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return x


class Frechet:
    """‖μ − μ_w‖² + tr(Σ + Σ_w − 2(Σ Σ_w)^½) to one real set (1706.08500), whose moments are taken once.

    It is biased upward by an amount that depends on n: compare at equal n only. float64.
    """

    def __init__(self, real: Tensor) -> None:
        self.metric = _metric("fid", "FrechetInceptionDistance", Given(real.shape[1]), reset_real_features=False)
        self.metric.update(real.double(), real=True)

    def __call__(self, features: Tensor) -> float:
        self.metric.reset()
        self.metric.update(features.double(), real=False)
        return float(self.metric.compute())

    def estimate(self, features: Tensor, uniform: Tensor) -> Estimate:
        """With the deviation over resampled samples."""
        return Estimate(self(features), bootstrap(lambda index: self(features[index]), uniform))


def kid(features: Tensor, real: Tensor, seed: int) -> Estimate:
    """Unbiased MMD² of the polynomial kernel; negative values are noise about zero (1801.01401)."""
    size = min(SUBSET_SIZE, len(features), len(real))
    subsets = 1 if size == len(features) == len(real) else SUBSETS  # the one subset is everything
    metric = _metric("kid", "KernelInceptionDistance", Given(real.shape[1]), subsets=subsets, subset_size=size)
    metric.update(real.double(), real=True)
    metric.update(features.double(), real=False)
    error = squared_mmd(polynomial, features.double(), real.double(), within_y=0.0).stderr
    return Estimate(float(_computed(metric, seed)[0]), error)


def inception_score(logits: Tensor) -> Estimate:
    """exp E KL(p(y|x) ‖ p(y)) of all samples together (1606.03498); more splits would lower it at small n."""
    metric = _metric("inception", "InceptionScore", Given(logits.shape[1]), splits=1)
    metric.update(logits.double())
    value = float(_computed(metric, 0)[0])
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    information = (p * (log_p - p.mean(0).log())).sum(1)
    return Estimate(value, value * float(information.std()) / len(logits) ** 0.5)  # d exp(KL) = exp(KL) dKL


def _metric(module: str, name: str, extractor: Given, **options: Any) -> Any:
    from importlib import import_module

    try:
        found = getattr(import_module(f"torchmetrics.image.{module}"), name)
    except ImportError as error:
        raise ValueError("image metrics need torchmetrics: pip install 'leaplm[image]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it keeps all features is what is wanted
        return found(feature=extractor, **options)


def _computed(metric: Any, seed: int) -> Any:
    """Its own shuffles follow our seed and leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a deviation over a single split
        torch.manual_seed(seed)
        return metric.compute()
