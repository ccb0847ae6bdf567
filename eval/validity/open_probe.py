"""Probe a run with an open suite: prompts from the held-out part of the text it was trained on, or for a model that was
trained elsewhere of the standard library."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from eval.decoding import decode_all
from eval.loading import LoadedRun
from eval.records import record
from eval.validity.open import OpenCase, OpenSuite
from flowmap.warp import Warp
from training.config import DataConfig, TokenizerConfig
from training.data.corpus import load_corpus
from training.data.store import TokenStore
from training.data.tokenizer import start_token

NEVER = "has no held-out source code to take prompts from: train on stdlib or on Python files"


def open_cases(run: LoadedRun, suite: OpenSuite) -> list[OpenCase]:
    data = DataConfig(**(run.config.get("data") or {}))
    if data.suite or data.cases:
        raise ValueError(f"{run.name} {NEVER}")
    tokenizer = TokenizerConfig(kind="pretrained", name=run.folder)
    store = load_corpus(data, tokenizer, progress=False).stores["validation"]
    cases = list(suite.cases_of(_texts(store, run.tokenizer)))
    if not cases:
        raise ValueError(f"{run.name} {NEVER}")
    return cases


def _texts(store: TokenStore, tokenizer: Any):
    for low, high in zip(store.offsets[:-1], store.offsets[1:], strict=True):
        yield tokenizer.decode(store.tokens[low:high].tolist(), skip_special_tokens=True)


@torch.no_grad()
def probe_open(
    run: LoadedRun,
    suite: OpenSuite,
    cases: Sequence[OpenCase],
    *,
    num: int,
    batch: int = 64,
    warp: Warp | None = None,
    seed: int = 0,
    block: int | None = None,
) -> list[dict[str, Any]]:
    """Validity of what the run writes, and of the real text cut to as many tokens (subject data). The error is
    over prompts, of which each gives the same number of samples."""
    warp = warp or Warp()
    size = block or run.block_size
    repeats = max(1, num // len(cases))
    chosen = [case for case in cases[: max(1, num)] for _ in range(repeats)]
    length = (run.config.get("data") or {}).get("length", 256)
    encode = lambda text: run.tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    starts = [[start_token(run.tokenizer), *encode(c.prompt)][-(length - suite.max_tokens) :] for c in chosen]
    valid, real = [], []
    passes = 0
    how: dict[str, Any] = {"new": suite.max_tokens, "warp": warp, "seed": seed, "block": block, "batch": batch}
    for which, out in decode_all(run, starts, **how):
        passes = max(passes, out.trunk_passes)
        lengths = (out.lengths - out.stopped.long()).tolist()
        for case, row, count, stopped in zip(
            chosen[which], out.tokens.tolist(), lengths, out.stopped.tolist(), strict=True
        ):
            text = run.tokenizer.decode(row[:count])
            valid.append(suite.is_valid(case.prompt, text + "\n" if stopped else text))
            cut = run.tokenizer.decode(encode(case.real)[: suite.max_tokens])
            real.append(suite.is_valid(case.prompt, cut))
    contract = {
        "block": size, "steps": 1, "nfe": passes, "temperature": warp.temperature, "top_p": warp.top_p, "batch": batch,
        "dtype": "float32", "verify": "none", "ema": run.ema, "trunk_passes": passes, "new": suite.max_tokens,
        "one_block": False,
    }  # fmt: skip
    common: dict[str, Any] = {
        "on": suite.name, "split": "validation", "kind": "estimate", "unit": "fraction", "stderr_over": "samples",
        "n": len(chosen), "prompts": len(chosen) // repeats, "contract": contract,
    }  # fmt: skip
    records = []
    for subject, values, more in (
        (run.subject if size > 1 else "trunk", valid, {"run": run.name, "train_seed": run.train_seed}),
        ("data", real, {}),
    ):
        by_prompt = np.array(values, dtype=float).reshape(-1, repeats).mean(1)
        error = float(by_prompt.std(ddof=1) / len(by_prompt) ** 0.5) if len(by_prompt) > 1 else None
        seeds: dict[str, Any] = {"sample_seed": seed, **more}
        records.append(record("validity", float(by_prompt.mean()), subject=subject, stderr=error, **common, **seeds))
    return records
