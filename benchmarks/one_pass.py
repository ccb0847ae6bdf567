"""The draw of a lattice chain without a loop over the block, against its position-by-position sampler: time, at equal law.

    python -m benchmarks.one_pass [--json benchmarks/results/speed/one-pass.json]

Both draw whole blocks of K tokens from the same states of the trunk M (width 768, 32,000 tokens; random weights, for which only shapes
count) in bf16 at temperature 1, addressed randomness included, freed memory kept, eager and compiled, in interleaved rounds on an otherwise
idle machine. That the two draw from one law is a matter of tests/mtp/test_lattice.py.
"""

import argparse
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch

from eval.records import record, write_records
from eval.speed.references import reference_trunk
from eval.speed.timing import interleaved, load_average, pair_ratio
from flowmap.rng import Rng
from flowmap.warp import Warp
from mtp.heads.base import BlockContext
from mtp.model import MTPForCausalLM
from training.hardware import keep_freed_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", default="M", choices=["S", "M", "L"])
    parser.add_argument("--blocks", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 32, 128])
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    trunk = reference_trunk(args.reference, torch.bfloat16, torch.device("cpu"))
    records: list[dict[str, Any]] = []
    for block, batch in product(args.blocks, args.batch_sizes):
        torch._dynamo.reset()
        model: Any = MTPForCausalLM.from_trunk(trunk, "lattice-chain", block, candidates=args.candidates)
        model.to(torch.bfloat16).eval()
        hidden = torch.randn(batch, trunk.config.hidden_size, dtype=torch.bfloat16)
        draws = contenders(model.head, model.context(hidden), batch)
        with torch.no_grad():
            seconds = interleaved(draws, args.rounds, f"K = {block}, batch {batch}")
        for way in ("eager", "compiled"):
            ratio = pair_ratio(seconds[f"serial, {way}"], seconds[f"one pass, {way}"])
            contract = {
                "dtype": "bfloat16",
                "batch": batch,
                "block": block,
                "candidates": args.candidates,
                "compiled": way == "compiled",
            }
            records.append(
                record(
                    "latency", 1 / ratio.value, on=args.reference, subject="lattice-chain, one pass", kind="estimate",
                    unit="× position by position", interval=[1 / ratio.high, 1 / ratio.low], stable=ratio.stable,
                    n=args.rounds, contract=contract, load_average=load_average(),
                )
            )  # fmt: skip
            print(
                f"K = {block}, batch {batch}, {way}: one pass {ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) × as fast as "
                f"position by position ({1e3 * float(seconds[f'serial, {way}'].mean()):.1f} ms)"
            )
    if args.json:
        write_records(args.json, ["python", "-m", "benchmarks.one_pass", *sys.argv[1:]], records)


def contenders(head: Any, ctx: BlockContext, batch: int) -> dict[str, Callable[[], object]]:
    """Every call draws a block of its own for each row."""
    rows, step = torch.arange(batch), iter(range(10**9))

    def serial() -> torch.Tensor:
        return head.sample(ctx, Warp(), Rng(0, rows, next(step))).tokens

    def one_pass() -> torch.Tensor:
        return head.sample_one_pass(ctx, Rng(0, rows, next(step))).tokens

    return {"serial, eager": serial, "one pass, eager": one_pass, **compiled(head, ctx, rows, step)}


def compiled(head: Any, ctx: BlockContext, rows: torch.Tensor, step: Any) -> dict[str, Callable[[], object]]:
    """What follows the randomness, which is drawn outside: integers of a counter are nothing to fuse."""
    size = head.block_size
    by_position = torch.compile(lambda noise: head.sample(ctx, Warp(), noise=noise).tokens)
    at_once = torch.compile(lambda uniforms, gumbels: head.draw_one_pass(ctx, uniforms, gumbels).tokens)

    def serial() -> torch.Tensor:
        return by_position(head.uniforms(ctx, Rng(0, rows, next(step)), None, size))

    def one_pass() -> torch.Tensor:
        return at_once(*head.one_pass_noise(ctx, Rng(0, rows, next(step)), size))

    return {"serial, compiled": serial, "one pass, compiled": one_pass}


if __name__ == "__main__":
    main()
