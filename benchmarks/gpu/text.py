"""A text as tokens in one small file, which travels to a machine that has neither the text nor a network."""

from pathlib import Path
from typing import Any

import numpy as np

from training.data.store import TokenStore

SPLITS = ("train", "validation")


def prepare(file: Path, name: str, vocab: int | None, keep: int, **more: str) -> None:
    """vocab: of a BPE trained on it; None: its characters, folded into 27. keep: training tokens, and a tenth as many held
    out. more: what else is to travel."""
    from training.config import DataConfig, TokenizerConfig
    from training.data.corpus import load_corpus

    kind = TokenizerConfig(kind="characters") if vocab is None else TokenizerConfig(vocab_size=vocab)
    corpus = load_corpus(DataConfig(name=name), kind)
    stores = corpus.stores
    fields: dict[str, Any] = {"name": name, "vocab": len(corpus.tokenizer), **more}
    for split, most in zip(SPLITS, (keep, keep // 10), strict=True):
        kept = beginning(stores[split], most)
        fields |= {split: kept.tokens.astype(np.uint16), f"{split}_offsets": kept.offsets}
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, **fields)
    print(f"{file}: {len(fields['train']):,} training tokens, {file.stat().st_size / 2**20:.0f} MiB")


def read(file: Path) -> tuple[str, int, dict[str, TokenStore]]:
    """Name, size of the vocabulary, splits."""
    found = np.load(file)
    stores = {split: TokenStore(found[split], found[f"{split}_offsets"], 0) for split in SPLITS}
    return str(found["name"]), int(found["vocab"]), stores


def beginning(store: TokenStore, most: int) -> TokenStore:
    """Its first tokens; the last document may be cut short."""
    tokens = np.asarray(store.tokens[:most])
    return TokenStore(tokens, np.append(store.offsets[store.offsets < len(tokens)], len(tokens)), 0)
