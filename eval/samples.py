"""Samples in one file: drawn once, looked at and scored as often as one likes.

A JSONL file, one sample a row: {"subject", "run", "train_seed", "prompt", "text", "blocks" (the text as each trunk
pass wrote it), "tokens" (how many), "real" (what followed the prompt in the data, if anything), "contract", "sample_seed"}.
"""

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.decoding import decode_all
from eval.flow import FlowRun
from eval.loading import LoadedRun
from eval.validity.suites import load_suite
from flowmap.warp import Warp
from mtp.decoding.speculative import Verified
from training.config import DataConfig, TokenizerConfig
from training.data.corpus import load_corpus
from training.data.tokenizer import start_token

FIELDS = {"subject", "run", "train_seed", "prompt", "text", "blocks", "real", "contract", "sample_seed"}


def held_out_prompts(run: LoadedRun | FlowRun, num: int, length: int, new: int) -> list[tuple[str, str]]:
    """(prompt, what followed): windows spread evenly over the held-out text, or a suite's own prompts."""
    return prompts_of(run, "validation", num, length, new)


def split_measured(run: LoadedRun) -> str:
    """Where `held_out_prompts` come from: "validation", or "train" of a suite that holds no prompt out."""
    data = DataConfig(**run.config["data"])
    if not (data.suite or data.cases):
        return "validation"
    suite = load_suite(data.suite or data.cases or "")
    return "train" if set(suite.prompts) <= set(suite.trained) else "validation"


def prompts_of(run: LoadedRun | FlowRun, split: str, num: int, length: int, new: int) -> list[tuple[str, str]]:
    """The same of a split by name; of a suite, "train" is what it was trained on."""
    if not run.config:
        raise ValueError(f"{run.name} does not say what it was trained on: give a --prompt")
    data = DataConfig(**run.config["data"])
    if data.suite or data.cases:
        suite = load_suite(data.suite or data.cases or "")
        prompts = tuple(suite.trained) if split == "train" else suite.prompts
        return [(prompts[i % len(prompts)], "") for i in range(num)]
    decode_tokens = lambda part: run.tokenizer.decode(part.tolist(), skip_special_tokens=True)  # noqa: E731
    return [
        (decode_tokens(window[:length]), decode_tokens(window[length:]))
        for window in windows_of(run, split, num, length + new)
    ]


def held_out_windows(run: LoadedRun, num: int, length: int) -> np.ndarray:
    """(num, length) token ids, spread evenly over the held-out text that the run was trained beside."""
    return windows_of(run, "validation", num, length)


def windows_of(run: LoadedRun | FlowRun, split: str, num: int, length: int) -> np.ndarray:
    """The same of a split by name."""
    data = DataConfig(**run.config["data"])
    tokenizer = TokenizerConfig(kind="pretrained", name=run.folder)
    tokens = load_corpus(data, tokenizer, progress=False).stores[split].tokens
    if len(tokens) < length:
        raise ValueError(f"{data.name}, {split}: {len(tokens)} tokens, less than the {length} of one window")
    starts = np.linspace(0, len(tokens) - length, num).astype(int)
    return np.stack([tokens[s : s + length] for s in starts]).astype(np.int64)


def in_tokens(run: LoadedRun | FlowRun, prompts: Sequence[tuple[str, str]]) -> list[list[int]]:
    """What decoding starts from: each prompt behind the start token."""
    encode = lambda text: run.tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    return [[start_token(run.tokenizer), *encode(prompt)] for prompt, _ in prompts]


@torch.no_grad()
def draw(
    run: LoadedRun,
    prompts: Sequence[tuple[str, str]],
    *,
    new: int,
    warp: Warp,
    seed: int = 0,
    block: int | None = None,
    batch: int = 64,
    threshold: float | None = None,
    drawn: bool = False,
) -> list[dict[str, Any]]:
    """One sample a prompt. threshold, drawn: of `decode_all`, in the contract where they are set."""
    size = block or run.block_size
    adaptive: dict[str, Any] = {} if threshold is None else {"threshold": threshold, "drawn": drawn}
    options: dict[str, Any] = {"new": new, "warp": warp, "seed": seed, "block": block, "batch": batch}
    rows = []
    for which, out in decode_all(run, in_tokens(run, prompts), **options, threshold=threshold, drawn=drawn):
        contract = {
            "block": size, "steps": 1, "nfe": out.trunk_passes, "temperature": warp.temperature, "top_p": warp.top_p,
            "batch": batch, "dtype": "float32", "verify": "none", "ema": run.ema, "new": new,
            **adaptive,
        }  # fmt: skip
        pieces = out.accepted.tolist() if isinstance(out, Verified) else [[size] * out.trunk_passes] * len(out.tokens)
        kept = (out.lengths - out.stopped.long()).tolist()
        for (prompt, real), tokens, count, passes in zip(prompts[which], out.tokens, kept, pieces, strict=True):
            ends = np.cumsum([0, *passes]).clip(max=count)
            blocks = [run.tokenizer.decode(tokens[a:b].tolist()) for a, b in pairwise(ends) if a < b]
            rows.append(
                {
                    "subject": run.subject if size > 1 else "trunk",
                    "run": run.name,
                    "train_seed": run.train_seed,
                    "prompt": prompt,
                    "text": run.tokenizer.decode(tokens[:count].tolist()),
                    "blocks": blocks,
                    "tokens": count,
                    "real": real,
                    "contract": contract,
                    "sample_seed": seed,
                }
            )
    return rows


def write_samples(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    partial.replace(path)


def read_samples(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"sample file {path} does not exist: leaplm sample RUN --out {path} writes one")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from error
        if not isinstance(row, dict) or FIELDS - set(row):
            missing = sorted(FIELDS - set(row)) if isinstance(row, dict) else sorted(FIELDS)
            raise ValueError(f"{path}, line {number}: no sample of leaplm; it lacks {', '.join(missing[:3])}")
        rows.append(row)
    if not rows:
        raise ValueError(f"sample file {path} is empty")
    return rows
