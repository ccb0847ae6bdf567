"""Tokens that a pass of the trunk commits, for heads of benchmarks.heads on text: rules, temperatures, K = 2, 4, 8.

    python -m benchmarks.acceptance [--on stdlib] [--heads ...] [--seeds 0 1 2] [--kept]

Heads are those of the likelihood tables, trained or resumed as there; 128 held-out prompts of 32 tokens, 64 new
tokens. Cells lie in benchmarks/results/acceptance/; `leaplm speed --verify --acceptance` reads them.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.cells import cell, cell_name, settings
from benchmarks.head_rates import BLOCKS
from benchmarks.heads import HEADS, TEXTS, scored_blocks, text_config
from eval.acceptance import measure as accepted
from eval.loading import load_run
from eval.records import seeds_mean
from flowmap.warp import Warp
from mtp.heads import NAMES
from training.config import load_preset, override, to_dict
from training.loop import train
from training.mtp_task import build

RESULTS = Path(__file__).parent / "results" / "acceptance"
VERIFY, TEMPERATURES = ("token", "block"), (0.0, 0.7, 1.0)
NUM, PROMPT, NEW = 128, 32, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", nargs="+", default=["stdlib"], choices=TEXTS)
    parser.add_argument("--heads", nargs="+", default=HEADS, choices=NAMES, metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/heads"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="variants, as in benchmarks.heads")
    parser.add_argument("--kept", action="store_true", help="the table of the cells that are there; measures nothing")
    args = parser.parse_args()
    command = ["python", "-m", "benchmarks.acceptance", *sys.argv[1:]]
    variant = settings(args.set)
    for on in args.on:
        found = []
        for head, seed in product(args.heads, args.seeds):
            found += (made := acceptance_cell(on, head, seed, args.runs, command, args.kept, variant))
            if made:
                print(f"{on} {head} seed {seed}", flush=True)
        print_table(on, found)


def acceptance_cell(
    on: str, head: str, seed: int, runs: Path, command: list[str], kept: bool, variant: dict[str, Any]
) -> list[dict[str, Any]]:
    trunk_config, trunk = override(load_preset(f"{on}-trunk"), seed=seed), runs / on / f"trunk-{seed}"
    config = override(text_config(on, head, seed, trunk), **variant)
    name, blocks = cell_name(head, seed, variant), scored_blocks(config)

    def measure() -> list[dict[str, Any]]:
        folder = runs / on / name
        train(trunk_config, trunk, build)
        train(config, folder, build)
        run = load_run(str(folder))
        return [
            record
            for block, verify, temperature in product(blocks, VERIFY, TEMPERATURES)
            for record in accepted(run, verify, Warp(temperature), block, NUM, PROMPT, NEW, seed)
        ]

    stated = to_dict(override(config, trunk__pretrained="trunk"))
    inputs = {
        "trunk": to_dict(trunk_config), "head": stated, "blocks": list(blocks), "verify": list(VERIFY),
        "temperatures": list(TEMPERATURES), "prompts": [NUM, PROMPT, NEW],
    }  # fmt: skip
    return cell(RESULTS / f"{on}-{name}.json", inputs, command, measure, kept)


def print_table(on: str, records: Sequence[dict[str, Any]]) -> None:
    """Accepted length, mean ± standard error over seeds, or of one seed the value alone."""
    print(f"\n{on}: tokens a pass of the trunk commits")
    print("| head | K | rule | " + " | ".join(f"T = {t:g}" for t in TEMPERATURES) + " |")
    print("|---" * (3 + len(TEMPERATURES)) + "|")
    for head, block, verify in product(NAMES, BLOCKS, VERIFY):
        cells = []
        for temperature in TEMPERATURES:
            wanted = {"block": block, "verify": verify, "temperature": temperature}
            chosen = [
                r
                for r in records
                if (r["subject"], r["metric"]) == (head, "accepted_length") and wanted.items() <= r["contract"].items()
            ]
            if chosen:
                mean = seeds_mean(chosen)
                error = f" ± {mean['stderr']:.3f}" if mean.get("stderr_over") == "seeds" else ""
                cells.append(f"{mean['value']:.3f}{error}")
        if cells:
            print(f"| {head} | {block} | {verify} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
