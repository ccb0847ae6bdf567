"""Features for the FID of the literature, of a network that is given as a file: no weights come with the package.

The file is TorchScript that takes uint8 images (n, 3, h, w) of any size, scales them itself, and returns (n, d)
features for `return_features=True`, as the Inception v3 of 1706.08500 is commonly passed around for diffusion models.
"""

import hashlib
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm


class Inception:
    """digest: of the file; two FIDs can be compared only if one network gave both."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"{path} is not a file: --inception names a TorchScript network of features")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # the format is older than its successors
                self.network = torch.jit.load(path, map_location="cpu").eval()
        except RuntimeError as error:
            raise ValueError(f"{path} is not TorchScript: {str(error).splitlines()[0]}") from error
        with path.open("rb") as file:
            self.digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]

    @torch.no_grad()
    def __call__(self, pixels: np.ndarray, batch: int = 100) -> Tensor:
        """uint8 (n, h, w, c), grey or coloured → (n, d) float64."""
        slices = range(0, len(pixels), batch)
        hidden = len(pixels) < 1000
        return torch.cat(
            [self._features(pixels[low : low + batch]) for low in tqdm(slices, "Inception", disable=hidden)]
        )

    def _features(self, pixels: np.ndarray) -> Tensor:
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).expand(-1, 3, -1, -1).contiguous()
        try:
            return self.network(images, return_features=True).double()
        except RuntimeError as error:
            raise ValueError(
                f"the Inception file does not take uint8 images with return_features=True: {_last_line(error)}"
            ) from error


def _last_line(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1]
