"""Tokens of a corpus on disk, memory-mapped, with the document each belongs to.

A store is a folder: `tokens.bin` (uint16 or uint32), `offsets.npy` (document starts, and the end)
and `meta.json`.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from training.data.tokenizer import encode_document


@dataclass(frozen=True)
class TokenStore:
    """tokens: (T,); offsets: (documents + 1,), document i is tokens[offsets[i]:offsets[i+1]];
    num_bytes: UTF-8 bytes of the text as its
    tokens tell it, for bits per byte."""

    tokens: np.ndarray
    offsets: np.ndarray
    num_bytes: int

    def documents_of(self, positions: np.ndarray) -> np.ndarray:
        """Document index of every position."""
        return np.searchsorted(self.offsets, positions, side="right") - 1


def write_store(folder: Path, texts: Iterable[str], tokenizer, progress: bool = True) -> None:
    """folder: must not exist yet."""
    folder.mkdir(parents=True)
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    offsets, num_bytes = [0], 0
    changes = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None) is not None
    with open(folder / "tokens.bin", "wb") as file:
        for text in tqdm(
            texts, desc=f"tokens {folder.name}", unit=" documents", disable=None if progress else True, leave=False
        ):
            ids = encode_document(tokenizer, text)
            np.asarray(ids, dtype=dtype).tofile(file)
            offsets.append(offsets[-1] + len(ids))
            told = tokenizer.decode(ids, skip_special_tokens=True) if changes else text
            num_bytes += len(told.encode())
    np.save(folder / "offsets.npy", np.asarray(offsets, dtype=np.int64))
    meta = {"dtype": np.dtype(dtype).name, "num_bytes": num_bytes, "tokens": offsets[-1], "documents": len(offsets) - 1}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def read_store(folder: Path) -> TokenStore:
    meta = json.loads((folder / "meta.json").read_text())
    tokens = (
        np.memmap(folder / "tokens.bin", dtype=meta["dtype"], mode="r") if meta["tokens"] else np.zeros(0, np.uint16)
    )
    return TokenStore(tokens, np.load(folder / "offsets.npy"), meta["num_bytes"])
