"""Where images come from: scikit-learn's digits, idx files, mosaics, class folders, the Hub.

A public set lies as plain files under one folder (root, LEAPLM_DATA, or the cache), in the form in which it is
published; one that does not is asked of the Hub.
"""

import gzip
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TILE = 32


@dataclass(frozen=True)
class Split:
    """images: uint8 (n, h, w, c). labels: integers (n,)."""

    images: np.ndarray
    labels: np.ndarray


Splits = tuple[Split, Split | None]


def read_named(name: str, root: str | None, size: int | None) -> Splits:
    """Training split, and the test split where the set has one."""
    if size is not None and (name == "digits" or name in PUBLIC):
        raise ValueError(f"image set {name!r} has one size of its own; a size is for folders and Hub sets")
    if name == "digits":
        return read_digits(), None
    if name in PUBLIC:
        read, home = PUBLIC[name]
        folder = _data_root(root) / name
        return read(folder) if folder.is_dir() else _read_public_from_hub(name, home, folder)
    path = Path(name).expanduser()
    if path.is_dir():
        return read_folder(path, size)
    if name.count("/") == 1 and not name.startswith(("/", ".", "~")):
        return read_hub(name, size)
    known = ", ".join(["digits", *PUBLIC])
    raise ValueError(f"image set {name!r} is none of {known}, no folder, and no Hub set (owner/name)")


def read_digits() -> Split:
    """UCI's handwritten digits, 1,797 images of 8 × 8 with values 0..16, which come with scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("the set digits comes with scikit-learn: pip install scikit-learn") from error
    found = load_digits()
    return Split(np.rint(found.images * (255 / 16)).astype(np.uint8)[..., None], found.target)


def read_idx(path: Path) -> np.ndarray:
    """An idx array of bytes, gzipped: two zero bytes, the type 8, the number of axes, their sizes, the bytes."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: fetch the set again")
    try:
        content = gzip.decompress(path.read_bytes())
        zero, kind, axes = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
        if (zero, kind) != (0, 8):
            raise ValueError("its head is not that of an array of bytes")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()
    except (OSError, EOFError, struct.error, ValueError) as error:
        raise ValueError(f"{path} is no idx file: {error}") from error


def read_mnist(folder: Path) -> Splits:
    def split(prefix: str) -> Split:
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
        return _checked(images[..., None], read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz"), folder)

    return split("train"), split("t10k")


def read_mosaics(folder: Path) -> Splits:
    """NAME.webp, tiles of 32 × 32 row by row, beside NAME_labels.npy; every train_* together is the training split."""

    def shard(path: Path) -> Split:
        picture = np.asarray(_open(path).convert("RGB"))
        rows, columns = picture.shape[0] // TILE, picture.shape[1] // TILE
        tiles = picture.reshape(rows, TILE, columns, TILE, 3).transpose(0, 2, 1, 3, 4)
        try:
            labels = np.load(path.with_name(f"{path.stem}_labels.npy"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} has no readable {path.stem}_labels.npy beside it") from error
        return _checked(tiles.reshape(-1, TILE, TILE, 3), labels, path)

    shards = [shard(path) for path in sorted(folder.glob("train_*.webp"))]
    if not shards or not (folder / "test.webp").is_file():
        raise ValueError(f"{folder} does not hold train_*.webp and test.webp")
    train = Split(np.concatenate([s.images for s in shards]), np.concatenate([s.labels for s in shards]))
    return train, shard(folder / "test.webp")


def read_folder(folder: Path, size: int | None) -> Splits:
    """folder/CLASS/image, or folder/train/CLASS/image and folder/test/CLASS/image. Classes in order of name."""
    names = {p.name for p in folder.iterdir() if p.is_dir()}
    parts = [folder / "train", folder / "test"] if {"train", "test"} <= names else [folder]
    classes = sorted({p.name for part in parts for p in part.iterdir() if p.is_dir()})
    found = [
        [(path, label) for label, name in enumerate(classes) for path in sorted((part / name).glob("*"))
         if path.suffix.lower() in SUFFIXES]
        for part in parts
    ]  # fmt: skip
    if not all(found):
        raise ValueError(f"{folder} holds no images: they lie as {folder.name}/CLASS/NAME.png")
    splits = [_stack(((_open(path), label) for path, label in files), size, folder) for files in found]
    return splits[0], splits[1] if len(splits) == 2 else None


def read_hub(name: str, size: int | None) -> Splits:
    """A set of the Hub with one image column and, if there is one, a column of class labels."""
    from datasets import load_dataset

    try:
        sets = load_dataset(name)
    except Exception as error:  # readers and networks fail in as many ways as there are
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the Hub set {name!r} did not load: {reason}") from error
    if "train" not in sets:
        raise ValueError(f"the Hub set {name!r} has no split train, only {', '.join(sets)}")
    kinds = {column: type(feature).__name__ for column, feature in sets["train"].features.items()}
    images = [column for column, kind in kinds.items() if kind == "Image"]
    labels = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    if not images:
        raise ValueError(f"the Hub set {name!r} has no column of images, only {', '.join(kinds)}")

    def split(part: str) -> Split:
        pairs = ((row[images[0]], row[labels[0]] if labels else 0) for row in sets[part])
        return _stack(pairs, size, name)

    held = next((part for part in ("test", "validation") if part in sets), None)
    return split("train"), split(held) if held else None


def _read_public_from_hub(name: str, home: str, folder: Path) -> Splits:
    try:
        return read_hub(home, None)
    except ValueError as error:
        mend = f"put its files there, or name the folder of public sets by LEAPLM_DATA (the Hub's {home} did not load)"
        raise ValueError(f"image set {name!r} is not in {folder}: {mend}") from error


def _stack(pairs: Iterable[tuple[Any, int]], size: int | None, where: object) -> Split:
    """PIL images → one array, of one channel if all are grey; the shorter side scaled to `size`, the middle kept."""
    from PIL import ImageOps

    arrays, labels = [], []
    for picture, label in pairs:
        fitted = picture.convert("L" if picture.mode in ("1", "L") else "RGB")
        if size is not None and fitted.size != (size, size):
            fitted = ImageOps.fit(fitted, (size, size))
        arrays.append(np.asarray(fitted).reshape(fitted.height, fitted.width, -1))
        labels.append(label)
    shapes = {array.shape[:2] for array in arrays}
    if len(shapes) > 1:
        raise ValueError(f"the images of {where} differ in size, {min(shapes)} to {max(shapes)}: give one size")
    channels = max(array.shape[2] for array in arrays)
    same = [array if array.shape[2] == channels else array.repeat(channels, 2) for array in arrays]
    return Split(np.stack(same), np.asarray(labels))


def _checked(images: np.ndarray, labels: np.ndarray, where: Path) -> Split:
    if len(images) != len(labels):
        raise ValueError(f"{where} holds {len(images)} images and {len(labels)} labels: fetch it again")
    return Split(images, labels)


def _open(path: Path) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError("image files are read by pillow: pip install pillow") from error
    try:
        picture = Image.open(path)
        picture.load()
        return picture
    except OSError as error:
        raise ValueError(f"{path} is no image: {error}") from error


def _data_root(root: str | None) -> Path:
    named = root or os.environ.get("LEAPLM_DATA")
    return Path(named or os.environ.get("LEAPLM_CACHE", "~/.cache/leaplm") + "/data").expanduser()


PUBLIC: dict[str, tuple[Callable[[Path], Splits], str]] = {
    "mnist": (read_mnist, "ylecun/mnist"),
    "fashion-mnist": (read_mnist, "zalando-datasets/fashion_mnist"),
    "cifar10": (read_mosaics, "uoft-cs/cifar10"),
}
"""Name → how its files are read, and where the Hub has it."""
