"""A text corpus ready to train on: tokenizer and token stores, built once and found again.

The cache folder is named by what was read (files by size and time, a Hub set by name) and by the
tokenizer, so a changed file or another Python never reads old tokens and nothing is read twice.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from training.cache import cache_root
from training.config import DataConfig, TokenizerConfig
from training.data.known import KNOWN, local_paths, read_known
from training.data.sources import (
    SPLITS,
    Document,
    dataset_documents,
    local_files,
    split_documents,
    stdlib,
    stdlib_files,
    verbatim_share,
)
from training.data.store import TokenStore, read_store, write_store
from training.data.tokenizer import character_tokenizer, load_tokenizer, train_bpe
from training.provenance import write_json


@dataclass(frozen=True)
class Corpus:
    """facts: fingerprint of text and tokenizer, sizes, and the share of validation that stands verbatim in train."""

    tokenizer: Any
    stores: dict[str, TokenStore]
    facts: dict[str, Any]


def load_corpus(
    data: DataConfig, tokenizer: TokenizerConfig, trunk: str | None = None, progress: bool = True
) -> Corpus:
    """trunk: where a pretrained tokenizer comes from when the config names none."""
    if tokenizer.kind == "words":
        raise ValueError("tokenizer.kind 'words' is for suites and cases; text takes bpe, characters or pretrained")
    name = tokenizer.name or trunk
    if tokenizer.kind == "pretrained" and not name:
        raise ValueError("tokenizer.kind 'pretrained' needs tokenizer.name")
    if tokenizer.kind == "characters":
        if name:
            raise ValueError(f"tokenizer.kind 'characters' has its own tokens: leave out {name!r}")
        fixed = character_tokenizer()
    else:
        fixed = load_tokenizer(name) if name else None
    how = f"bpe-{tokenizer.vocab_size}" if fixed is None else _digest(fixed)
    key = json.dumps([_identity(data), how], sort_keys=True)
    folder = cache_root() / "corpora" / hashlib.sha256(key.encode()).hexdigest()[:20]
    if not folder.exists():
        splits = _read_splits(data)
        if not splits["train"]:
            raise ValueError(f"data.name {data.name!r} holds no text")
        made = fixed or train_bpe(splits["train"], tokenizer.vocab_size)
        facts = _build(folder, splits, made, how, progress)
        if progress:
            share = f"{facts['verbatim_share']:.1%} of validation stands verbatim in train"
            print(f"{data.name}: {facts['train_tokens']:,} training tokens; {share}")
    facts = json.loads((folder / "facts.json").read_text())
    stores = {split: read_store(folder / split) for split in SPLITS}
    return Corpus(load_tokenizer(folder / "tokenizer"), stores, facts)


def _identity(data: DataConfig) -> list[Any]:
    """What is read, without reading it: files by size and time, a Hub set by name and configuration."""
    options = [data.subset, data.split, data.text_column, data.sample_by, data.max_documents]
    if data.name == "stdlib":
        return ["stdlib", sys.version, _stamps([path for path, _ in stdlib_files()]), data.max_documents]
    if data.name in KNOWN:
        paths = local_paths(KNOWN[data.name], data.root)
        return [data.name, _stamps(list(paths.values())) if paths else None, data.max_documents]
    sources = [(name, _stamps(local_files(name))) for name in (data.name, data.validation) if name]
    return [sources, options]


def _stamps(files: list[Path]) -> list[Any]:
    return [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def _read_splits(data: DataConfig) -> dict[str, list[str]]:
    def limited(documents: Iterator[Document]) -> list[Document]:
        return list(islice(documents, data.max_documents))

    if data.name == "stdlib":
        return split_documents(limited(stdlib()))
    if data.name in KNOWN:
        splits = read_known(KNOWN[data.name], data.root)
        return {split: texts[: data.max_documents] for split, texts in splits.items()}
    local = local_files(data.name)
    if local and data.split != "train":
        raise ValueError(f"data.split {data.split!r}: local files have no splits; name the files in data.name")
    if local and data.validation and not local_files(data.validation):
        raise ValueError(f"data.validation {data.validation!r} is no local file")
    options: dict[str, Any] = {
        "subset": data.subset,
        "text_column": data.text_column,
        "sample_by": data.sample_by,
        "streaming": data.streaming,
    }
    train = limited(dataset_documents(data.name, split=data.split, **options))
    if data.validation is None:
        return split_documents(train)
    if local_files(data.validation):
        held_out = dataset_documents(data.validation, **options)
    else:
        held_out = dataset_documents(data.name, split=data.validation, **options)
    return {"train": [d.text for d in train], "validation": [d.text for d in held_out], "test": []}


def _digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _build(folder: Path, splits: dict[str, list[str]], tokenizer: Any, how: str, progress: bool) -> dict[str, Any]:
    """Beside its place, then renamed: a half-built corpus is never read, and the first to finish wins."""
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tokenizer.save_pretrained(partial / "tokenizer")
    digest = hashlib.sha256(how.encode())
    for split, texts in splits.items():
        write_store(partial / split, texts, tokenizer, progress)
        for text in (split, *texts):
            digest.update(hashlib.sha256(text.encode()).digest())
    facts = {
        "fingerprint": digest.hexdigest()[:20],
        "train_tokens": len(read_store(partial / "train").tokens),
        "validation_tokens": len(read_store(partial / "validation").tokens),
        "verbatim_share": round(verbatim_share(splits["train"], splits["validation"]), 4),
        "vocab_size": len(tokenizer),
    }
    write_json(partial / "facts.json", facts)
    try:
        partial.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(partial)
    return facts
