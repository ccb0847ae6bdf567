"""Where documents come from: the standard library's source, local files, or a Hub set.

A source is an iterator of documents; `split_documents` holds out whole groups of them.
"""

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUFFIXES = {".txt": "text", ".md": "text", ".py": "text", ".json": "json", ".jsonl": "json"}
STDLIB_LEFT_OUT = {
    "test", "tests", "idle_test", "encodings", "pydoc_data", "idlelib", "lib2to3",
    "site-packages", "dist-packages", "turtledemo", "__pycache__",
}  # fmt: skip
HELD_OUT = 0.06
"""Share of groups in the validation split, and again in the test split."""
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Document:
    """group: what must stay on one side of a split."""

    text: str
    group: str


def split_of(group: str) -> str:
    """The same answer on every machine: a hash of the group's name, not of its order."""
    digest = hashlib.sha256(f"leaplm:{group}".encode()).digest()
    level = int.from_bytes(digest[:8], "big") / 2**64
    return "validation" if level < HELD_OUT else "test" if level < 2 * HELD_OUT else "train"


def stdlib_files() -> Iterator[tuple[Path, str]]:
    """Source files and the top-level module each belongs to."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not STDLIB_LEFT_OUT.intersection(parts[:-1]) and not parts[0].startswith("config-"):
            yield path, parts[0].removesuffix(".py").lstrip("_")


def stdlib() -> Iterator[Document]:
    """The running Python's standard library, one document a file, grouped by top-level module:
    split by file, a fifth of the validation bytes are lines that stand verbatim in train."""
    for path, module in stdlib_files():
        text = path.read_text(encoding="utf-8", errors="replace")
        if text.strip():
            yield Document(text, module)


def dataset_documents(
    name: str,
    *,
    subset: str | None = None,
    split: str = "train",
    text_column: str = "text",
    sample_by: str = "document",
    streaming: bool = False,
) -> Iterator[Document]:
    """A local text or JSONL file or folder (gzipped or not), or a Hub set, through `datasets`.

    sample_by (text files): "document" (a file), "paragraph" or "line".
    """
    from datasets import load_dataset

    files = local_files(name)
    try:
        if files:
            kind = _kind(files[0])
            options = {"sample_by": sample_by} if kind == "text" else {}
            paths = {"train": [str(f) for f in files]}
            rows = load_dataset(kind, data_files=paths, split="train", streaming=streaming, **options)
        else:
            rows = load_dataset(name, subset, split=split, streaming=streaming)
    except Exception as error:  # readers and the Hub fail in as many ways as there are formats
        what = "could not be read" if files else "is no local file and did not load from the Hub"
        raise ValueError(f"data.name {name!r} {what}: {_first_line(error)}") from error
    yield from _texts(rows, name, text_column)


def _texts(rows: Any, name: str, column: str) -> Iterator[Document]:
    """A document's group is its own text: copies stay on one side of a split, wherever the files lie."""
    rows = iter(rows)
    while True:
        try:
            row = next(rows, None)
        except Exception as error:  # a malformed line fails in as many ways as there are readers
            raise ValueError(f"{name} could not be read: {_first_line(error)}") from error
        if row is None:
            return
        if column not in row:
            raise ValueError(f"data.text_column {column!r} is not a column of {name}: it has {', '.join(row)}")
        text = row[column]
        if text is not None and not isinstance(text, str):
            raise ValueError(f"data.text_column {column!r} of {name} holds {type(text).__name__}, not text")
        if text and text.strip():
            yield Document(text, hashlib.sha256(text.encode()).hexdigest())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def local_files(name: str) -> list[Path]:
    """The files a local name stands for; none if it does not exist here."""
    path = Path(os.path.expandvars(name)).expanduser()
    if path.is_file():
        if _kind(path) is None:
            raise ValueError(f"data file {name}: suffix must be one of {', '.join(SUFFIXES)} (may end in .gz)")
        return [path]
    if not path.is_dir():
        return []
    files = sorted(f for f in path.rglob("*") if f.is_file() and _kind(f))
    kinds = {_kind(f) for f in files}
    if len(kinds) != 1:
        raise ValueError(
            f"data folder {name} must hold files of one kind, text or JSON; found {len(files)} files of {len(kinds)}"
        )
    return files


def _kind(path: Path) -> str | None:
    suffix = Path(path.name.removesuffix(".gz")).suffix
    return SUFFIXES.get(suffix)


def split_documents(documents: Iterable[Document]) -> dict[str, list[str]]:
    """Hold out whole groups; a source of very few documents gives up the tail of each instead."""
    documents = list(documents)
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    for document in documents:
        splits[split_of(document.group)].append(document.text)
    if len(documents) >= 50 and all(splits.values()):
        return splits
    shares = (0.0, 1 - 2 * HELD_OUT, 1 - HELD_OUT, 1.0)
    return {
        name: [d.text[int(len(d.text) * low) : int(len(d.text) * high)] for d in documents]
        for name, low, high in zip(SPLITS, shares[:-1], shares[1:], strict=True)
    }


def verbatim_share(train: Iterable[str], validation: Iterable[str], min_length: int = 20) -> float:
    """Share of validation characters in lines of at least min_length that stand verbatim in train."""
    seen = {line.strip() for text in train for line in text.splitlines() if len(line.strip()) >= min_length}
    total = copied = 0
    for text in validation:
        for line in text.splitlines():
            total += len(line) + 1
            if line.strip() in seen:
                copied += len(line) + 1
    return copied / max(1, total)
