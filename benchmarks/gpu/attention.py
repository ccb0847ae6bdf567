"""Attention backends by name on a GPU: how far each is from exact products, forwards and backwards, and how long it takes.

    python -m benchmarks.gpu.attention --out attention.json [--names sdpa flash_attention_2]

    relative error   ‖o − o*‖/‖o*‖ of outputs and of the gradients of Σ o·g, o* by written-out products in fp32

A backend that is not here (flash-attn is the extra `flash`) is left out with a word, never measured as another. Windows of N states
without a mask, as a flow language model of whole windows has them; a masked one is sdpa's in any case.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.records import record, write_records
from flowmap.attention import NAMES, Attention, eager, resolve, sdpa

PARTS = ("output", "query", "key", "value")


@dataclass(frozen=True)
class Shape:
    """Of queries, keys and values: rows, heads, states of a window, numbers of a head."""

    batch: int = 8
    heads: int = 12
    length: int = 1024
    size: int = 64

    def draw(self, device: torch.device, seed: int = 0) -> list[Tensor]:
        """q, k, v and g, the gradient that comes back, in fp32."""
        generator = torch.Generator().manual_seed(seed)
        shape = (4, self.batch, self.heads, self.length, self.size)
        return list(torch.randn(shape, generator=generator).to(device))


def available(name: str) -> Attention | None:
    """None where another would be used in its place."""
    found = resolve(name)
    return None if found is sdpa and name != "sdpa" else found


def products(attend: Attention, parts: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """o, and the gradients of q, k, v."""
    q, k, v = (x.to(dtype, copy=True).requires_grad_() for x in parts[:3])
    out = attend(q, k, v, None)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), parts[3].to(out.dtype))]


def relative_errors(
    name: str, shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> dict[str, float] | None:
    """Of each of PARTS; None where the backend is not here. The exact products start from the same rounded numbers."""
    attend = available(name)
    if attend is None:
        return None
    parts = [x.to(dtype).float() for x in shape.draw(device)]
    exact, got = products(eager, parts, torch.float32), products(attend, parts, dtype)
    pairs = zip(PARTS, got, exact, strict=True)
    return {part: float((a.float() - b).norm() / b.norm()) for part, a, b in pairs}


def seconds(
    attend: Attention, shape: Shape, device: torch.device, rounds: int, dtype: torch.dtype = torch.bfloat16
) -> float:
    """Of one forward and backward pass: the median."""
    parts, took = shape.draw(device), []
    for number in range(rounds + 3):
        _wait(device)
        start = time.perf_counter()
        products(attend, parts, dtype)
        _wait(device)
        if number >= 3:
            took.append(time.perf_counter() - start)
    return sorted(took)[len(took) // 2]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measured(name: str, shape: Shape, device: torch.device, rounds: int) -> dict[str, Any] | None:
    errors = relative_errors(name, shape, device)
    attend = available(name)
    if errors is None or attend is None:
        return None
    contract = {
        "batch": shape.batch,
        "heads": shape.heads,
        "length": shape.length,
        "size": shape.size,
        "dtype": "bfloat16",
    }
    return record(
        "latency", seconds(attend, shape, device, rounds), on=f"attention-{shape.length}", subject=name, kind="estimate",
        unit="s", n=rounds, relative_error=errors, contract=contract,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--names", nargs="+", default=NAMES, choices=NAMES, metavar="NAME")
    parser.add_argument("--lengths", nargs="+", type=int, default=[256, 1024, 4096])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    device, records = torch.device("cuda" if torch.cuda.is_available() else "cpu"), []
    for length in args.lengths:
        for name in args.names:
            found = measured(name, Shape(args.batch, args.heads, length), device, args.rounds)
            if found is None:
                print(f"{name}: left out, it is not here", flush=True)
                continue
            worst = max(found["relative_error"].values())
            print(f"{name} at {length}: {found['value'] * 1e3:.3f} ms, off by {worst:.1e} at most", flush=True)
            records.append(found)
    write_records(args.out, ["python", "-m", "benchmarks.gpu.attention", *sys.argv[1:]], records)


if __name__ == "__main__":
    main()
