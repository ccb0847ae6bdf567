"""The backbone's training step against torch's own transformer encoder of the same size and depth.

    python -m benchmarks.backbone [--json benchmarks/results/speed/backbone.json]

What it has besides (times, adaptive norms, QK-norm) is in its price; beside it, what QK-norm and the plain products of
short windows on CPUs make of that. Interleaved rounds on an otherwise idle machine.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from eval.records import record, write_records
from eval.speed.timing import interleaved, load_average, pair_ratio
from flowmap.backbone import Backbone, BackboneConfig

SIZES = {"digits": (96, 5, 4, 256, 16), "small": (256, 6, 4, 64, 64), "large": (512, 8, 8, 16, 128)}
"""width, depth, heads, batch, states."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    records = []
    for name, (width, depth, heads, batch, count) in SIZES.items():
        x, t = torch.randn(batch, count, width), torch.rand(batch)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        shape = {"width": width, "depth": depth, "heads": heads, "max_positions": count}
        networks = {
            "backbone": Backbone(BackboneConfig(state_size=width, **shape)),
            "backbone, no QK-norm": Backbone(BackboneConfig(state_size=width, qk_norm=False, **shape)),
            "backbone, torch's fused attention": Backbone(BackboneConfig(state_size=width, **shape), fused),
        }
        steps = {"torch": one_step(lambda e=encoder, x=x: e(x), args.dtype)}
        for subject, network in networks.items():
            steps[subject] = one_step(lambda n=network, x=x, t=t: n(x, t, t), args.dtype)
        seconds = interleaved(steps, args.rounds, name)
        for subject in networks:
            ratio = pair_ratio(seconds[subject], seconds["torch"])
            contract = {"dtype": args.dtype, "batch": batch, "states": count, **shape}
            records.append(
                record(
                    "latency", ratio.value, on=name, subject=subject, kind="estimate", unit="× torch's encoder",
                    interval=[ratio.low, ratio.high], stable=ratio.stable, n=args.rounds, contract=contract,
                    load_average=load_average(),
                )
            )  # fmt: skip
            print(f"{name}, {subject}: {ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) × torch's encoder")
    if args.json:
        write_records(args.json, ["python", "-m", "benchmarks.backbone", *sys.argv[1:]], records)


def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def one_step(forward: Callable[[], torch.Tensor], dtype: str) -> Callable[[], object]:
    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            out = forward()
        out.float().square().mean().backward()

    return run


if __name__ == "__main__":
    main()
