"""Image samples against the test split: how far, how many of its modes, and whether they were memorised."""

from eval.images.grid import write_grid
from eval.images.scorer import ImageScorer, score_images

__all__ = ["ImageScorer", "score_images", "write_grid"]
