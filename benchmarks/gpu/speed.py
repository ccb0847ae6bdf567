"""Decoding speed of the reference trunks on a GPU: the same contenders and rounds as `leaplm speed`.

python -m benchmarks.gpu.speed --out speed.json [--sizes M L] [--batches 1 8 32]
"""

import argparse
import sys
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
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine, records = measure_machine(torch.bfloat16, device), []
    for size in args.sizes:
        trunk = reference_trunk(size, torch.bfloat16, device)
        heads = []
        for name in NAMES:
            rank = {"rank": args.rank} if "rank" in option_names(name) else {}
            model: Any = MTPForCausalLM.from_trunk(trunk, name, max(args.blocks), **rank)
            model.to(device, torch.bfloat16).eval()
            heads += [(model, block) for block in args.blocks]
        for batch in args.batches:
            setting = Setting(size, batch, rounds=args.rounds)
            records += measure(contenders(trunk, heads, setting, compiled=True), setting, machine, "bfloat16", device)
            write_records(args.out, ["python", "-m", "benchmarks.gpu.speed", *sys.argv[1:]], records)


if __name__ == "__main__":
    main()
