"""Can a head be trained through its own draws? A finished head goes on, each arm with the same CPU time.

    python -m benchmarks.on_policy --costs                    CPU seconds of a step of each arm, interleaved
    python -m benchmarks.on_policy [--seeds 0 1 2]            cells that are not there yet, then the table
    python -m benchmarks.on_policy --arms rloo-overlap --seeds 0 --set optimizer.lr=5e-4      a trial: a cell of its own

All arms begin with the weights that the block chain of benchmarks.heads keeps, on its frozen trunk, and make as many
steps as --seconds of one core hold: on the text (cross-entropy, or the distance in total variation to the trunk's full
law), or on blocks drawn by the head, four at each of four anchors a window. Measured, beside the head they began with:
accepted length by the token rule at T = 1, and the judge's NLL of direct samples where their entropy is the first
head's own at T = 1, interpolated between temperatures from 0.7 to 1.3; a judge that is not there is asked for. Cells lie
in benchmarks/results/on_policy/; benchmarks.on_policy_gradients looks at the estimators themselves.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.cells import cell, cell_name, settings
from benchmarks.costs import measure_costs, seconds_of_a_step
from benchmarks.heads import text_config
from eval.acceptance import measure as accepted
from eval.frontier import at_entropy
from eval.loading import load_run
from eval.quality import quality
from eval.records import seeds_mean
from eval.samples import draw, held_out_prompts
from flowmap.warp import Warp
from training.config import RunConfig, load_preset, override, to_dict
from training.loop import train
from training.mtp_task import build
from training.run_dir import RunDir

RESULTS = Path(__file__).parent / "results" / "on_policy"
ON, HEAD = "stdlib", "block-chain"
ANCHORS = 4 / 256
"""Of a window of 256, for what draws its own blocks; on the text a quarter of the positions, as the first head had."""
DRAWING = (
    "reinforce-accepted", "rloo-accepted", "rloo-overlap", "rloo-score", "rloo-kl",
    "rloo-energy", "straight-through-energy", "st-gumbel-energy", "gumbel-rao-energy", "reinmax-energy",
)  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {
    "cross-entropy": {},
    "total-variation": {"head__distill": "total-variation"},
    **{
        kind: {"head__on_policy": kind, "head__samples": 4, "head__anchor_fraction": ANCHORS}
        for kind in DRAWING
    },
}  # fmt: skip
FIRST = "as it was"
RATE = 1e-3
"""A quarter of the rate that the head was trained with, whose schedule had come to an end."""
BLOCKS, TEMPERATURES = (4, 8), (0.7, 0.85, 1.0, 1.15, 1.3)
NUM, PROMPT, NEW = 128, 32, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=[FIRST, *ARMS], choices=[FIRST, *ARMS], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=300.0, help="of training on one core, for each cell")
    parser.add_argument("--runs", type=Path, default=Path("runs/heads"))
    parser.add_argument("--kept", action="store_true", help="the table of the cells that are there; trains nothing")
    parser.add_argument("--costs", action="store_true", help="measure the cost of a step of each arm instead")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other values: cells of their own")
    args = parser.parse_args()
    command = ["python", "-m", "benchmarks.on_policy", *sys.argv[1:]]
    file = RESULTS / f"{ON}-costs.json"
    if args.costs:
        train_first(args.seeds[0], args.runs)
        configs = {arm: config_of(arm, args.seeds[0], 1, args.runs) for arm in ARMS}
        measure_costs(configs, build, ON, file, command)
        return
    costs = seconds_of_a_step(file, "python -m benchmarks.on_policy --costs")
    found: list[dict[str, Any]] = []
    for arm, seed in product(args.arms, args.seeds):
        steps = 0 if arm == FIRST else round(args.seconds / costs[arm])
        made = Arm(arm, seed, steps, args.runs, settings(args.set), command, args.kept).records()
        found += [{**r, "arm": arm, "trained_steps": steps, "train_seed": seed} for r in made]
        if made:
            print(f"{ON} {arm} seed {seed}", flush=True)
    print_table(found)


def train_first(seed: int, runs: Path) -> tuple[RunConfig, RunConfig]:
    """The trunk and the head that all arms begin with, trained if they are not there; their configurations."""
    trunk = runs / ON / f"trunk-{seed}"
    trunk_config, head_config = override(load_preset(f"{ON}-trunk"), seed=seed), text_config(ON, HEAD, seed, trunk)
    train(trunk_config, trunk, build)
    train(head_config, runs / ON / f"{HEAD}-{seed}", build)
    return trunk_config, head_config


def config_of(
    arm: str, seed: int, steps: int, runs: Path, variant: Mapping[str, Any] = MappingProxyType({})
) -> RunConfig:
    """The head's own configuration but for what the arm changes; another order of the text than the first time."""
    first = text_config(ON, HEAD, seed, runs / ON / f"trunk-{seed}")
    return override(
        first,
        **{
            "head__start": str(runs / ON / f"{HEAD}-{seed}"),
            "seed": seed + 1000,
            "optimizer__lr": RATE,
            "training__steps": steps,
            **ARMS[arm],
            **variant,
        },
    )


class Arm:
    """One arm's cells: what its tokens are worth to the trunk, and to a judge."""

    def __init__(
        self, name: str, seed: int, steps: int, runs: Path, variant: dict[str, Any], command: list[str], kept: bool
    ) -> None:
        self.name, self.seed, self.runs, self.command, self.kept = name, seed, runs, command, kept
        self.short = cell_name(name.replace(" ", "-"), seed, {} if name == FIRST else variant)
        self.folder = runs / ON / (f"{HEAD}-{seed}" if name == FIRST else f"on-policy/{self.short}-{steps}")
        self.config = None if name == FIRST else config_of(name, seed, steps, runs, variant)
        trunk = runs / ON / f"trunk-{seed}"
        first = {
            "trunk": to_dict(override(load_preset(f"{ON}-trunk"), seed=seed)),
            "head": to_dict(override(text_config(ON, HEAD, seed, trunk), trunk__pretrained="trunk")),
        }
        # by what it is, not where it lies
        own = self.config and to_dict(override(self.config, trunk__pretrained="trunk", head__start="head"))
        self.inputs = {"first": first, "config": own, "prompts": [NUM, PROMPT, NEW], "blocks": list(BLOCKS)}

    def records(self) -> list[dict[str, Any]]:
        made = cell(RESULTS / f"{ON}-{self.short}.json", self.inputs, self.command, self.accept, self.kept)
        judge = load_preset(f"{ON}-judge")
        file, inputs = RESULTS / f"{ON}-{self.short}-quality.json", self.inputs | {"judge": to_dict(judge)}
        missing = RunDir(self.runs / ON / "judge").steps()[-1:] != [judge.training.steps]
        if missing and not self.kept:
            print(f"no judge yet: leaplm train {ON}-judge --run-dir {self.runs / ON / 'judge'}")
        return made + cell(file, inputs, self.command, self.judge, self.kept or missing)

    def run(self) -> Any:
        train_first(self.seed, self.runs)
        if self.config is not None:
            train(self.config, self.folder, build)
        return load_run(str(self.folder))

    def accept(self) -> list[dict[str, Any]]:
        run = self.run()
        return [
            r for block in BLOCKS for r in accepted(run, "token", Warp(), block, NUM, PROMPT, NEW, self.seed)
        ]  # fmt: skip

    def judge(self) -> list[dict[str, Any]]:
        run = self.run()
        prompts = held_out_prompts(run, NUM, PROMPT, NEW)
        rows = [
            row
            for block, temperature in product(BLOCKS, TEMPERATURES)
            for row in draw(run, prompts, new=NEW, warp=Warp(temperature), seed=self.seed, block=block)
        ]
        return quality(rows, load_run(str(self.runs / ON / "judge")), ON)


def print_table(records: Sequence[dict[str, Any]]) -> None:
    """Means over seeds ± their standard error; differences to the head that the same seed began with."""
    print(
        "| arm | steps | "
        + " | ".join(f"accepted, K = {k} | change | judge NLL at equal entropy" for k in BLOCKS)
        + " |"
    )
    print("|---" * (2 + 3 * len(BLOCKS)) + "|")

    by = {
        (r["arm"], r["train_seed"], r["metric"], r["contract"]["block"], r["contract"]["temperature"]): r["value"]
        for r in records
        if r["subject"] != "data"
    }

    def judged(arm: str, seed: int, block: int) -> float | None:
        wanted = by.get((FIRST, seed, "entropy", block, 1.0))
        if wanted is None or (arm, seed, "judge_nll", block, 1.0) not in by:
            return None
        pairs = [(by[arm, seed, "entropy", block, t], by[arm, seed, "judge_nll", block, t]) for t in TEMPERATURES]
        return at_entropy(pairs, wanted)

    for arm in dict.fromkeys(r["arm"] for r in records):
        own = [r for r in records if r["arm"] == arm]
        cells = []
        for block in BLOCKS:
            seeds = sorted({r["train_seed"] for r in own})
            lengths = {seed: by[arm, seed, "accepted_length", block, 1.0] for seed in seeds}
            before = {seed: by.get((FIRST, seed, "accepted_length", block, 1.0)) for seed in seeds}
            change = [lengths[seed] - was for seed, was in before.items() if was is not None]
            cells += [_mean(list(lengths.values())), _mean(change), _mean([judged(arm, s, block) for s in seeds])]
        print(f"| {arm} | {own[0]['trained_steps']} | {' | '.join(cells)} |")


def _mean(values: Sequence[float | None]) -> str:
    found = [{"value": v, "train_seed": i} for i, v in enumerate(values) if v is not None]
    if not found:
        return "–"
    mean = seeds_mean(found)
    error = f" ± {mean['stderr']:.3f}" if mean.get("stderr_over") == "seeds" else ""
    return f"{mean['value']:.3f}{error}"


if __name__ == "__main__":
    main()
