"""Samples of trunk and heads under a judge, at temperatures 0, 0.7 and 1: after benchmarks.heads has trained them.

    python -m benchmarks.quality [--on stdlib] [--blocks 4 8] [--num 64] [--new 64]

The judge is the preset ON-judge. All samples lie in one file, RUNS/ON/samples-SEED.jsonl, for `leaplm quality` to
score again and `leaplm report` to show; the records in benchmarks/results/quality/ON-SEED.json.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.cells import cell
from benchmarks.heads import HEADS
from eval.loading import load_run
from eval.quality import quality
from eval.samples import draw, held_out_prompts, write_samples
from mtp.decoding.warp import Warp
from training.config import load_preset, to_dict
from training.loop import train
from training.mtp_task import build
from training.run_dir import RunDir

RESULTS = Path(__file__).parent / "results" / "quality"
TEMPERATURES = (0.0, 0.7, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", default="stdlib", choices=("stdlib", "wikitext2"))
    parser.add_argument("--heads", nargs="+", default=HEADS, choices=HEADS)
    parser.add_argument("--blocks", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--num", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0, help="of the heads' training and of the draws")
    parser.add_argument("--runs", type=Path, default=Path("runs/heads"))
    args = parser.parse_args()
    judge_config, here = load_preset(f"{args.on}-judge"), args.runs / args.on
    command = ["python", "-m", "benchmarks.quality", *sys.argv[1:]]
    trained = [f"trunk-{args.seed}", *(f"{head}-{args.seed}" for head in args.heads)]

    def measure() -> list[dict[str, Any]]:
        train(judge_config, here / "judge", build)
        trunk = load_run(str(here / f"trunk-{args.seed}"))
        prompts = held_out_prompts(trunk, args.num, 32, args.new)
        rows = _draw(trunk, prompts, 1, args)
        for head in args.heads:
            run = load_run(str(here / f"{head}-{args.seed}"))
            for block in args.blocks:
                rows += _draw(run, prompts, block, args)
        write_samples(here / f"samples-{args.seed}.jsonl", rows)
        return quality(rows, load_run(str(here / "judge")), args.on)

    inputs = {**vars(args), "runs": str(args.runs), "heads": list(args.heads), "judge": to_dict(judge_config)}
    inputs["trained"] = {name: RunDir(here / name).provenance() for name in trained}
    records = cell(RESULTS / f"{args.on}-{args.seed}.json", inputs, command, measure)
    print("\n| on | subject | K | temperature | metric | value | standard error |\n|---|---|---|---|---|---|---|")
    for r in records:
        c = r["contract"]
        metric = f"{r['metric']} {r.get('ngram', '')}".strip()
        error = f"± {r['stderr']:.2g}" if "stderr" in r else ""
        print(
            f"| {r['on']} | {r['subject']} | {c.get('block', '')} | {c.get('temperature', '')} | {metric} | {r['value']:.4g} | {error} |"
        )


def _draw(run: Any, prompts: list[tuple[str, str]], block: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    return [
        row
        for temperature in TEMPERATURES
        for row in draw(run, prompts, new=args.new, warp=Warp(temperature), seed=args.seed, block=block)
    ]


if __name__ == "__main__":
    main()
