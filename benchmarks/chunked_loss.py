"""The chunked head loss against the naive one: peak memory and time of a forward and backward pass.

    python -m benchmarks.chunked_loss [--vocab 32000] [--length 1024] [--block 4] [--json FILE]

Naive: all logits of the block at once, then cross-entropy. Each peak is that of a process of its own,
above what it held before the pass; times are interleaved pairs in one process, median of the ratios.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from eval.records import record, write_records
from mtp.heads import build_head
from mtp.heads.base import BlockContext

HEADS = ("independent", "recurrent-chain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", nargs=2, metavar=("HEAD", "FORM"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(json.dumps(peak(args, *args.peak)))
        return
    shape = [f"--{name}={getattr(args, name)}" for name in ("vocab", "length", "block", "width")]
    records = []
    for head in HEADS:
        peaks = {}
        for form in ("naive", "chunked"):
            command = [sys.executable, "-m", "benchmarks.chunked_loss", *shape, "--peak", head, form]
            peaks[form] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        ratio = time_ratio(args, head)
        contract = {
            "block": args.block,
            "length": args.length,
            "vocab": args.vocab,
            "width": args.width,
            "dtype": "float32",
        }
        for form, value in peaks.items():
            records.append(
                record(
                    "peak_memory",
                    value,
                    on="head-loss",
                    subject=head,
                    unit="bytes",
                    kind="estimate",
                    form=form,
                    contract=contract,
                )
            )
        records.append(
            record(
                "latency",
                ratio,
                on="head-loss",
                subject=head,
                unit="chunked/naive",
                kind="estimate",
                n=args.pairs,
                contract=contract,
            )
        )
        print(
            f"{head}: peak {peaks['chunked'] / 2**20:.0f} MiB against {peaks['naive'] / 2**20:.0f} MiB naive "
            f"(× {peaks['chunked'] / peaks['naive']:.2f}); time × {ratio:.2f}"
        )
    if args.json:
        write_records(args.json, ["python", "-m", "benchmarks.chunked_loss", *sys.argv[1:]], records)


def problem(args: argparse.Namespace, name: str):
    torch.manual_seed(0)
    head = build_head(
        name, hidden_size=args.width, embedding_size=args.width, vocab_size=args.vocab, block_size=args.block
    )
    table = (torch.randn(args.vocab, args.width) * 0.02).requires_grad_()
    hidden = torch.randn(args.length, args.width, requires_grad=True)
    targets = torch.randint(args.vocab, (args.length, args.block))
    return head, BlockContext(hidden, table, table), targets


def chunked(head, ctx, targets) -> None:
    head.nll(ctx, targets, torch.ones_like(targets, dtype=torch.bool)).loss.backward()


def naive(head, ctx, targets) -> None:
    inputs, tables = head._terms(ctx, targets[:, :-1])
    logits = sum(x @ table.T for x, table in zip(inputs, tables, strict=True))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), reduction="sum").backward()


FORMS = {"chunked": chunked, "naive": naive}


def peak(args: argparse.Namespace, name: str, form: str) -> int:
    """Bytes above what parameters, gradients and the library itself take."""
    head, ctx, targets = problem(args, name)
    small = BlockContext(ctx.hidden[:4], ctx.embedding, ctx.unembedding)
    FORMS[form](head, small, targets[:4])  # gradients exist and kernels are loaded
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from what is held now
    before = _status("VmRSS")
    FORMS[form](head, ctx, targets)
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def time_ratio(args: argparse.Namespace, name: str) -> float:
    head, ctx, targets = problem(args, name)
    ratios = []
    for pair in range(args.pairs + 1):
        seconds = {}
        for form in sorted(FORMS, reverse=bool(pair % 2)):
            start = time.perf_counter()
            FORMS[form](head, ctx, targets)
            seconds[form] = time.perf_counter() - start
        if pair:  # the first warms up
            ratios.append(seconds["chunked"] / seconds["naive"])
    return statistics.median(ratios)


if __name__ == "__main__":
    main()
