"""`leaplm perplexity`: likelihood of held-out text with its data error; exact of a trunk, exact or a bound of a joint head, by
estimators of its own of a flow language model."""

import math
from typing import Any

from eval.block_records import block_records, law_kind
from eval.likelihood import (
    BlockLikelihood,
    Likelihood,
    likelihoods,
    same_blocks,
    standard_error,
)
from eval.loading import LoadedRun, load_run, model_type
from eval.records import keep_records, record, write_records
from eval.tables import print_row
from flowlm import MODEL_TYPES
from training.config import DataConfig, TokenizerConfig
from training.data.corpus import load_corpus
from training.data.store import TokenStore


def run(args: Any, command: list[str]) -> int:
    """The exit code: 1 where a certificate was asked for and not passed."""
    flows = [name for name in args.runs if model_type(name) in MODEL_TYPES]
    others = [name for name in args.runs if name not in flows]
    if others and (args.certify or args.estimator or args.from_zero):
        raise ValueError(
            f"{others[0]} is no model of windows: --estimator, --from-zero and --certify are of those alone"
        )
    records, failed = run_flows(flows, args, command)
    independent: dict[int, BlockLikelihood] = {}
    loaded = sorted((load_run(name) for name in others), key=lambda r: r.subject != "independent")
    for one in loaded:
        store, on, length = _text(one, args)
        made = measure(one, store, on, args.split, length, args.blocks, independent)
        keep_records(one.name, f"perplexity-{on}-{args.split}", command, made)
        _print(one, made)
        records += made
    if args.json:
        write_records(args.json, command, records)
    return int(failed)


def run_flows(names: list[str], args: Any, command: list[str]) -> tuple[list[dict[str, Any]], bool]:
    """Records of flow language models, and whether a certificate was not passed."""
    from eval.flow import load_flow
    from eval.flow_perplexity import estimator_of, measure_flow
    from eval.flow_records import print_certificate, print_flow

    records: list[dict[str, Any]] = []
    failed = False
    for name in names:
        flow = load_flow(name)
        made, certified = measure_flow(flow, args)
        for one in certified:
            print_certificate(flow, estimator_of(flow, args.estimator), one.block, one.certificate)
            failed |= not one.certificate.holds
        if made:
            first, blocks = made[0], dict.fromkeys(r["contract"].get("block") for r in made)
            what = [first["on"], first["split"], first["contract"]["estimator"], *(f"block-{b}" for b in blocks if b)]
            keep_records(name, "-".join(["perplexity", *what, *["zero"] * args.from_zero]), command, made)
            print_flow(flow, made)
        records += made
    return records, failed


def measure(
    run: LoadedRun,
    store: TokenStore,
    on: str,
    split: str,
    length: int,
    blocks: tuple[int, ...] | None = None,
    independent: dict[int, BlockLikelihood] | None = None,
) -> list[dict[str, Any]]:
    """All likelihoods of one run on one text. blocks: sizes, default those of 2, 4, 8 and 16 that the head
    reaches, and its own. independent: that head's results by block size; filled by it, read by the others."""
    sizes = block_sizes(run, blocks) if run.model.head is not None else []
    found = likelihoods(run.model, store, length, sizes)
    records = chain_records(run, found.chain, store, on, split, length)
    independent = {} if independent is None else independent
    for size, result in found.blocks.items():
        base = None if run.subject == "independent" else independent.get(size)
        if base is not None and not same_blocks(base, result):
            print(f"{run.name} and the independent head stand on other trunks or texts: no share of the gap")
            base = None
        records += [{**r, "split": split} for r in block_records(run, result, on, base, length)]
        records += direct_records(run, found.direct[size], store, on, split, length, size)
        if run.subject == "independent":
            independent[size] = result
    return records


def block_sizes(run: LoadedRun, asked: tuple[int, ...] | None) -> list[int]:
    if asked is None:
        return sorted({size for size in (2, 4, 8, 16) if size <= run.block_size} | {run.block_size})
    for size in asked:
        if not 2 <= size <= run.block_size:
            raise ValueError(f"--blocks {size}: {run.name} was trained for blocks of 2 to {run.block_size} tokens")
    return sorted(set(asked))


def chain_records(
    run: LoadedRun, result: Likelihood, store: TokenStore, on: str, split: str, length: int
) -> list[dict[str, Any]]:
    """nll, perplexity and bits per byte of the trunk's own chain, over every token of the split."""
    common = _common(run, "trunk", result, on, split, length, 1)
    nll, error = float(result.sums.sum() / result.count.sum()), standard_error(result.sums, result.count)
    return [
        record("nll", nll, stderr=error, unit="nats/token", **common),
        record(
            "perplexity",
            math.exp(nll),
            stderr=None if error is None else math.exp(nll) * error,
            unit="per token",
            **common,
        ),
        _bits_per_byte(nll, error, result, store, common),
    ]


def direct_records(
    run: LoadedRun, result: Likelihood, store: TokenStore, on: str, split: str, length: int, size: int
) -> list[dict[str, Any]]:
    """The likelihood of what direct decoding writes, over the same tokens."""
    common = _common(run, run.subject, result, on, split, length, size)
    nll, error = float(result.sums.sum() / result.count.sum()), standard_error(result.sums, result.count)
    common |= law_kind(run)
    noise: dict[str, Any] = {} if result.monte_carlo is None else {"monte_carlo": result.monte_carlo}
    return [
        record("direct_nll", nll, stderr=error, unit="nats/token", **common, **noise),
        _bits_per_byte(nll, error, result, store, common),
    ]


def _bits_per_byte(
    nll: float, error: float | None, result: Likelihood, store: TokenStore, common: dict[str, Any]
) -> dict[str, Any]:
    bits = result.count.sum() / store.num_bytes / math.log(2)
    return record(
        "bits_per_byte", nll * bits, stderr=None if error is None else error * bits, unit="bits/byte", **common
    )


def _common(
    run: LoadedRun, subject: str, result: Likelihood, on: str, split: str, length: int, size: int
) -> dict[str, Any]:
    contract = {"block": size, "steps": 1, "nfe": 1, "dtype": "float32", "ema": run.ema, "context": length}
    return {
        "on": on, "subject": subject, "kind": "exact" if subject == "trunk" or run.head.exact else "bound", "stderr_over": "documents", "n": int(result.count.sum()),
        "split": split, "run": run.name, "train_seed": run.trunk_seed if subject == "trunk" else run.train_seed, "contract": contract,
    }  # fmt: skip


def _text(run: LoadedRun, args: Any) -> tuple[TokenStore, str, int]:
    """The text in the run's own tokens, what it is called, and the window's length."""
    if not run.config and not args.data:
        raise ValueError(f"{run.name} does not say what it was trained on: name a text with --data")
    data = DataConfig(**(run.config.get("data") or {}))
    if args.data:
        data = DataConfig(name=args.data, length=data.length, text_column=args.text_column, root=data.root)
    if data.suite or data.cases:
        raise ValueError(f"{run.name} was trained on a suite: name a text with --data, or use leaplm probe")
    tokenizer = TokenizerConfig(kind="pretrained", name=run.folder)
    store = load_corpus(data, tokenizer).stores[args.split]
    if len(store.tokens) < 2:
        raise ValueError(f"{data.name} has no {args.split} split")
    return store, data.name, args.length or data.length


def _print(run: LoadedRun, records: list[dict[str, Any]]) -> None:
    print_row(f"\n{run.subject}", "value", "data error", "Monte Carlo error", "unit")
    for r in records:
        block = r["contract"]["block"]
        parts = [
            "" if r["subject"] == run.subject else r["subject"],
            f"K={block}" if block > 1 else "",
            r["metric"],
            r.get("positions", ""),
        ]
        error = f"{r['stderr']:.2g}" if "stderr" in r else ""
        print_row(" ".join(filter(None, parts)), f"{r['value']:.5g}", error, _drawn(r), r["unit"])


def _drawn(r: dict[str, Any]) -> str:
    if r["kind"] == "exact":
        return "none: exact"
    known = f"{r['monte_carlo']:.2g}, " if "monte_carlo" in r else ""
    return f"{known}{r['kind']}, {r['draws']} draws"
