"""Decoding speed of the reference trunks on a GPU: the same contenders and rounds as `leaplm speed`.

    python -m benchmarks.gpu.speed --out speed.json [--sizes M L] [--batches 1 8 32]

A size and a batch after the other; none is begun after --seconds, and what was left out is said.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch

from eval.records import write_records
from eval.speed.decoding import Setting, contenders, measure
from eval.speed.floor import measure_machine
from eval.speed.references import reference_trunk
from mtp.heads import NAMES, option_names
from mtp.model import MTPForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", nargs="+", default=["M", "L"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--blocks", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rank", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=360.0, help="after which no further setting is begun")
    args = parser.parse_args()
    start = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine, records = measure_machine(torch.bfloat16, device), []
    held, trunk, heads = "", None, []
    for size, batch in product(args.sizes, args.batches):
        if time.monotonic() - start > args.seconds:
            print(f"left out, since {args.seconds:g} s are over: {size} at batch {batch}", flush=True)
            continue
        if size != held:
            held, trunk = size, reference_trunk(size, torch.bfloat16, device)
            heads = [(model, block) for model in with_heads(trunk, args) for block in args.blocks]
        setting = Setting(size, batch, rounds=args.rounds)
        records += measure(contenders(trunk, heads, setting, compiled=True), setting, machine, "bfloat16", device)
        write_records(args.out, ["python", "-m", "benchmarks.gpu.speed", *sys.argv[1:]], records)


def with_heads(trunk: Any, args: argparse.Namespace) -> Iterator[Any]:
    for name in NAMES:
        rank = {"rank": args.rank} if "rank" in option_names(name) else {}
        model: Any = MTPForCausalLM.from_trunk(trunk, name, max(args.blocks), **rank)
        yield model.to(trunk.device, torch.bfloat16).eval()


if __name__ == "__main__":
    main()
