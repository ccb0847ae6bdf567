"""`leaplm regenerate`: text for a head that its trunk wrote, from prompts of its own training text.

A head is asked for what its trunk would say, and learns it better from the trunk's words than from those the trunk
learned by (self-distillation, 2401.10774, sec. 2.3.2). Prompts stand spread over the training split, none crosses a
document's end, and the held-out splits are not touched. A row that reaches its last token unfinished is a document like
any other to whoever trains on it, and ends there.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from eval.decoding import decode_all
from eval.loading import LoadedRun, load_run
from eval.records import write_records
from flowmap.warp import Warp
from training.config import DataConfig, TokenizerConfig, difference
from training.data.corpus import load_corpus
from training.data.tokenizer import start_token
from training.trunk import weights_digest


def run(args: Any, command: list[str]) -> None:
    source = load_run(args.run)
    limit = getattr(source.model.trunk.config, "max_position_embeddings", None)
    if limit and 1 + args.prompt_tokens + args.new > limit:
        raise ValueError(f"--prompt-tokens and --new must stay below the {limit} positions that {args.run} can read")
    contract = {
        "trunk_sha256": weights_digest(source.model.trunk), "num": args.num, "prompt_tokens": args.prompt_tokens,
        "new": args.new, "temperature": args.temperature, "top_p": args.top_p, "seed": args.seed, "batch": args.batch,
    }  # fmt: skip
    done = _kept_rows(args.out, contract)
    prompts = train_prompts(source, args.num, args.prompt_tokens)
    warp = Warp(args.temperature, args.top_p)
    tokens = 0
    with (
        open(args.out, "a", encoding="utf-8") as file,
        tqdm(total=args.num, initial=done, desc=args.out.name, unit=" documents") as bar,
    ):
        parts = decode_all(
            source, prompts, new=args.new, warp=warp, seed=args.seed, block=1, batch=args.batch, skip=done
        )
        for which, out in parts:
            for prompt, row, length in zip(prompts[which], out.tokens, out.lengths.tolist(), strict=True):
                text = _text(source, prompt, row[:length])
                file.write(json.dumps({"text": text, "contract": contract}, ensure_ascii=False) + "\n")
            file.flush()
            tokens += int(out.lengths.sum())
            bar.update(len(out.tokens))
    if args.json:
        write_records(
            args.json, command, [], file=str(args.out), documents=args.num, tokens_written_now=tokens, contract=contract
        )
    print(f"{args.out}: {args.num} documents, {tokens:,} tokens written now; train on it with --data.name {args.out}")


def train_prompts(source: LoadedRun, num: int, length: int) -> list[list[int]]:
    """Token lists of at most `length` and the start token, from places spread evenly over the training split; a shorter
    document is a prompt whole, without its end token."""
    if not source.config:
        raise ValueError(f"{source.name} does not say what it was trained on: give a run directory")
    data = DataConfig(**source.config["data"])
    if data.suite or data.cases:
        raise ValueError(f"{source.name} was trained on a suite, whose law is known: there is no text to regenerate")
    tokenizer = TokenizerConfig(kind="pretrained", name=source.folder)
    store = load_corpus(data, tokenizer, progress=False).stores["train"]
    places = np.linspace(0, len(store.tokens) - 1, num).astype(np.int64)
    documents = store.documents_of(places)
    first, end = store.offsets[documents], store.offsets[documents + 1] - 1
    starts = np.maximum(first, np.minimum(places, end - length))
    begin = start_token(source.tokenizer)
    prompts = []
    for start, low, high in zip(starts, first, end, strict=True):
        prompt = store.tokens[start : min(start + length, high)].tolist()
        prompts.append(prompt if start == low else [begin, *prompt])
    return prompts


def _text(source: LoadedRun, prompt: list[int], new: torch.Tensor) -> str:
    text = source.tokenizer.decode([*prompt, *new.tolist()], skip_special_tokens=True)
    return text.strip("\ufffd")  # a window may begin or end inside a character


def _kept_rows(path: Path, contract: dict[str, Any]) -> int:
    """Rows that an earlier attempt left, in whole batches; what follows them is cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return 0
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # a row without its line's end is half of one
    try:
        contracts = [json.loads(line)["contract"] for line in lines]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} was not written by leaplm regenerate: name another --out") from error
    for held in contracts:
        if differing := difference(held, contract):
            names = ", ".join(differing[:3])
            raise ValueError(f"{path} holds rows of another {names}: name another --out, or remove it")
    kept = len(lines) if len(lines) == contract["num"] else len(lines) - len(lines) % contract["batch"]
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(line + "\n" for line in lines[:kept]), encoding="utf-8")
    partial.replace(path)
    return kept
