"""`leaplm perplexity`: exact likelihood of held-out text, trunk and joint head, with its data error.

Text is cut into windows of the run's own length; a token's context is its window before it, at most.
"""

import math
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from eval.block_records import block_records
from eval.likelihood import BlockLikelihood, block_likelihood, standard_error
from eval.loading import LoadedRun, load_run
from eval.records import record, write_records
from eval.tables import print_row
from mtp.losses.linear_nll import row_nll
from training.config import DataConfig, TokenizerConfig
from training.data.corpus import load_corpus
from training.data.store import TokenStore
from training.data.windows import TextWindows
from training.run_dir import model_folder


def run(args: Any, command: list[str]) -> None:
    records: list[dict[str, Any]] = []
    independent: BlockLikelihood | None = None
    loaded = sorted((load_run(name) for name in args.runs), key=lambda r: r.subject != "independent")
    for one in loaded:
        data = DataConfig(**(one.config.get("data") or {}))
        if args.data:
            data = DataConfig(name=args.data, length=data.length, text_column=args.text_column)
        if data.suite or data.cases:
            raise ValueError(f"{one.name} was trained on a suite: name a text with --data, or use leaplm probe")
        # the run's own tokenizer, wherever the text comes from
        store = load_corpus(data, TokenizerConfig(kind="pretrained", name=str(model_folder(one.name)))).stores[
            args.split
        ]
        if len(store.tokens) < 2:
            raise ValueError(f"{data.name} has no {args.split} split")
        made = trunk_records(one, store, data.name, args.split, args.length or data.length)
        print_row(f"\n{one.subject}", "value", "standard error", "unit")
        if one.model.head is not None:
            result = block_likelihood(one.model, store, args.length or data.length)
            base = independent if one.subject != "independent" else None
            made += [{**r, "split": args.split} for r in block_records(one, result, data.name, base)]
            independent = result if one.subject == "independent" else independent
        for r in made:
            name = " ".join(
                filter(None, ["" if r["subject"] == one.subject else "trunk", r["metric"], r.get("positions")])
            )
            print_row(name, f"{r['value']:.5g}", f"{r['stderr']:.2g}" if "stderr" in r else "", r["unit"])
        records += made
    if args.json:
        write_records(args.json, command, records)


def trunk_records(run: LoadedRun, store: TokenStore, on: str, split: str, length: int) -> list[dict[str, Any]]:
    """nll, perplexity and bits per byte of the trunk's own chain, over every token of the split."""
    sums, count = chain_likelihood(run.model, store, length)
    nll, error = float(sums.sum() / count.sum()), standard_error(sums, count)
    bits = count.sum() / store.num_bytes / math.log(2)
    contract = {"block": 1, "steps": 1, "nfe": 1, "dtype": "float32", "ema": run.ema, "context": length}
    common: dict[str, Any] = {
        "on": on, "subject": "trunk", "kind": "exact", "stderr_over": "documents", "n": int(count.sum()), "split": split,
        "run": run.name, "train_seed": run.train_seed, "contract": contract,
    }  # fmt: skip
    return [
        record("nll", nll, stderr=error, unit="nats/token", **common),
        record("perplexity", math.exp(nll), stderr=math.exp(nll) * error, unit="per token", **common),
        record("bits_per_byte", nll * bits, stderr=error * bits, unit="bits/byte", **common),
    ]


@torch.no_grad()
def chain_likelihood(model: Any, store: TokenStore, length: int, batch: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """(documents,) nats and tokens: every token but a document's first is scored once, its end included."""
    windows = TextWindows(store, length, 1, batch, seed=0)
    documents = len(store.offsets) - 1
    sums, count = np.zeros(documents), np.zeros(documents)
    for low in tqdm(range(0, windows.num_windows, batch), desc="likelihood", disable=None, leave=False):
        part = windows.windows(range(low, min(low + batch, windows.num_windows))).to(model.device)
        hidden, _ = model.states(part.inputs)
        targets, mask = part.blocks(1)
        mask = mask[..., 0]
        context = model.context(hidden[mask])
        nll = row_nll([context.hidden], [context.unembedding], targets[mask][:, 0], context.bias)
        index = part.document[:, :length][mask].cpu().numpy()
        np.add.at(sums, index, nll.double().cpu().numpy())
        np.add.at(count, index, 1)
    return sums, count
