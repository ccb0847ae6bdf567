"""Samples of trunk and heads under a judge, direct decoding at temperatures 0, 0.7 and 1: K = 2, 4, 8.

    python -m benchmarks.quality [--on stdlib] [--heads ...] [--seeds 0 1 2] [--kept]

Heads are those of the likelihood tables, trained or resumed as there; the judge is the preset ON-judge; 64 held-out
prompts of 32 tokens, 64 new tokens. Cells lie in benchmarks/results/quality/, the samples of each in
RUNS/ON/samples-SUBJECT-SEED.jsonl, for `leaplm quality` to score again and `leaplm report` to show.
"""

import argparse
import sys
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.cells import cell
from benchmarks.head_rates import BLOCKS
from benchmarks.heads import HEADS, TEXTS, text_config
from eval.loading import load_run
from eval.quality import quality
from eval.samples import draw, held_out_prompts, write_samples
from flowmap.warp import Warp
from mtp.heads import NAMES
from training.config import load_preset, override, to_dict
from training.loop import train
from training.mtp_task import build

RESULTS = Path(__file__).parent / "results" / "quality"
TEMPERATURES = (0.0, 0.7, 1.0)
NUM, PROMPT, NEW = 64, 32, 64
TRUNK = "trunk"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", nargs="+", default=["stdlib"], choices=TEXTS)
    parser.add_argument("--heads", nargs="+", default=[TRUNK, *HEADS], choices=[TRUNK, *NAMES], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the training and of the draws")
    parser.add_argument("--runs", type=Path, default=Path("runs/heads"))
    parser.add_argument("--kept", action="store_true", help="the table of the cells that are there; measures nothing")
    args = parser.parse_args()
    command = ["python", "-m", "benchmarks.quality", *sys.argv[1:]]
    print("| on | subject | seed | K | temperature | metric | value | standard error |")
    print("|---" * 8 + "|")
    for on, head, seed in product(args.on, args.heads, args.seeds):
        for r in quality_cell(on, head, seed, args.runs, command, args.kept):
            print_row(r, seed)


def quality_cell(on: str, head: str, seed: int, runs: Path, command: list[str], kept: bool) -> list[dict[str, Any]]:
    """head: a head's name, or the trunk alone."""
    trunk_config, trunk = override(load_preset(f"{on}-trunk"), seed=seed), runs / on / f"trunk-{seed}"
    config = None if head == TRUNK else text_config(on, head, seed, trunk)
    judge_config = load_preset(f"{on}-judge")

    def measure() -> list[dict[str, Any]]:
        folder, judge = runs / on / f"{head}-{seed}", runs / on / "judge"
        train(judge_config, judge, build)
        train(trunk_config, trunk, build)
        if config is not None:
            train(config, folder, build)
        run = load_run(str(folder))
        prompts = held_out_prompts(run, NUM, PROMPT, NEW)
        rows = [
            row
            for block, temperature in product((1,) if head == TRUNK else BLOCKS, TEMPERATURES)
            for row in draw(run, prompts, new=NEW, warp=Warp(temperature), seed=seed, block=block)
        ]
        write_samples(runs / on / f"samples-{head}-{seed}.jsonl", rows)
        return quality(rows, load_run(str(judge)), on)

    inputs = {
        "trunk": to_dict(trunk_config), "judge": to_dict(judge_config), "blocks": list(BLOCKS),
        "head": config and to_dict(override(config, trunk__pretrained="trunk")), "temperatures": list(TEMPERATURES),
        "prompts": [NUM, PROMPT, NEW],
    }  # fmt: skip
    return cell(RESULTS / f"{on}-{head}-{seed}.json", inputs, command, measure, kept)


def print_row(r: dict[str, Any], seed: int) -> None:
    contract = r["contract"]
    metric = f"{r['metric']} {r.get('ngram', '')}".strip()
    error = f"± {r['stderr']:.2g}" if "stderr" in r else ""
    shown = [r["on"], r["subject"], seed, contract.get("block", ""), contract.get("temperature", ""), metric]
    print("| " + " | ".join(map(str, shown)) + f" | {r['value']:.4g} | {error} |", flush=True)


if __name__ == "__main__":
    main()
