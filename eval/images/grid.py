"""Samples as one picture."""

from pathlib import Path

import numpy as np


def write_grid(path: Path, images: np.ndarray, columns: int, zoom: int = 1) -> None:
    """uint8 (n, h, w, c), row by row into a PNG with a pixel between tiles; zoom: each pixel as a square."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError("pictures are written by pillow: pip install pillow") from error
    if columns < 1 or not len(images):
        raise ValueError(f"a grid of {len(images)} images in {columns} columns: both must be at least 1")
    tiles = images.repeat(zoom, 1).repeat(zoom, 2)
    n, height, width, channels = tiles.shape
    rows = -(-n // columns)
    page = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 128, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        page[top : top + height, left : left + width] = tile
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(page[..., 0] if channels == 1 else page).save(path)
