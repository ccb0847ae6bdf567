"""Learning rates of the heads, swept on one seed of `stdlib`: what each cell of benchmarks.heads trains with.

    python -m benchmarks.rates [--heads ...] [--rates 1e-3 2e-3 4e-3 8e-3 16e-3] [--kept]

Every head, the independent baseline too, is tried at the same rates on the same frozen trunk, with the steps and the
data of its cell; NLL of positions 2–8 on the held-out windows that training watches. Cells lie in
benchmarks/results/rates/.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.cells import cell
from benchmarks.head_rates import BLOCKS
from benchmarks.heads import HEADS, text_config
from eval.records import record
from mtp.heads import NAMES, family
from training.config import load_preset, override, to_dict
from training.loop import train
from training.mtp_task import build

RESULTS = Path(__file__).parent / "results" / "rates"
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)
ON, SEED = "stdlib", 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", default=HEADS, choices=NAMES, metavar="NAME")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--kept", action="store_true", help="the table of the cells that are there; trains nothing")
    args = parser.parse_args()
    command = ["python", "-m", "benchmarks.rates", *sys.argv[1:]]
    print("| head | " + " | ".join(f"{rate:g}" for rate in args.rates) + " |")
    print("|---" * (len(args.rates) + 1) + "|")
    for head in args.heads:
        found = [rate_cell(head, rate, args.runs, command, args.kept) for rate in args.rates]
        shown = [f"{records[0]['value']:.3f}" if records else "–" for records in found]
        print(f"| {head} | " + " | ".join(shown) + " |", flush=True)


def rate_cell(head: str, rate: float, runs: Path, command: list[str], kept: bool) -> list[dict[str, Any]]:
    trunk_config, trunk = override(load_preset(f"{ON}-trunk"), seed=SEED), runs / "heads" / ON / f"trunk-{SEED}"
    config = override(text_config(ON, head, SEED, trunk), optimizer__lr=rate)

    def measure() -> list[dict[str, Any]]:
        train(trunk_config, trunk, build)
        folder = runs / "sweep" / f"{head}-{rate:g}"
        train(config, folder, build)
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        final = [line for line in lines if line["split"] == "validation"][-1]
        positions = f"2-{max(BLOCKS)}"
        contract = {"block": max(BLOCKS), "lr": rate, "trained_steps": config.training.steps, "dtype": "float32"}
        kind = "exact" if family(head).exact else "bound"
        return [
            record(
                "nll", final["head_nll"], on=ON, subject=head, unit="nats/token", kind=kind, split="validation",
                positions=positions, train_seed=SEED, contract=contract,
            )
        ]  # fmt: skip

    stated = to_dict(override(config, trunk__pretrained="trunk"))
    inputs = {"trunk": to_dict(trunk_config), "head": stated}
    return cell(RESULTS / f"{ON}-{head}-{rate:g}.json", inputs, command, measure, kept)


if __name__ == "__main__":
    main()
