"""Heads side by side, three seeds: validity on the suites, exact block NLL on the standard library.

    python -m benchmarks.heads                      every cell that is not there yet
    python -m benchmarks.heads --on stdlib --heads block-chain independent --seeds 0

Each cell trains (or resumes, or finds trained) its run under --runs, measures it, and is kept in
benchmarks/results/heads/; the table at the end is RESULTS.md's.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.cells import cell
from eval.block_records import block_records
from eval.likelihood import BlockLikelihood, block_likelihood
from eval.loading import LoadedRun, load_run
from eval.records import seeds_mean
from eval.validity.probe import probe
from eval.validity.suites import load_suite
from training.config import RunConfig, load_preset, override, to_dict
from training.data.corpus import load_corpus
from training.loop import train
from training.mtp_task import build

RESULTS = Path(__file__).parent / "results" / "heads"
HEADS = ("independent", "first-order-chain", "recurrent-chain", "block-chain")
SUITES = ("poker", "pairs-64", "skip-64")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", nargs="+", default=[*SUITES, "stdlib"], choices=[*SUITES, "stdlib"])
    parser.add_argument("--heads", nargs="+", default=HEADS, choices=HEADS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/heads"))
    args = parser.parse_args()
    command = ["python", "-m", "benchmarks.heads", *sys.argv[1:]]
    found: list[dict[str, Any]] = []
    for on in args.on:
        measure = text_cell if on == "stdlib" else suite_cell
        for head in args.heads:
            for seed in args.seeds:
                found += measure(on, head, seed, args.runs, command)
                print(f"{on} {head} seed {seed}", flush=True)
    print_table(found)


def suite_cell(suite: str, head: str, seed: int, runs: Path, command: list[str]) -> list[dict[str, Any]]:
    config = override(load_preset(suite), head__name=head, seed=seed)

    def measure() -> list[dict[str, Any]]:
        folder = runs / suite / f"{head}-{seed}"
        train(config, folder, build)
        return probe(load_run(str(folder)), load_suite(suite), num=20_000, seed=seed).records

    return cell(RESULTS / f"{suite}-{head}-{seed}.json", to_dict(config), command, measure)


def text_cell(on: str, head: str, seed: int, runs: Path, command: list[str]) -> list[dict[str, Any]]:
    """Heads on one frozen trunk (seed 0); likelihood of the whole validation split."""
    trunk_config, trunk = load_preset("stdlib-trunk"), runs / on / "trunk"
    train(trunk_config, trunk, build)
    config = override(load_preset("stdlib-head"), head__name=head, seed=seed, trunk__pretrained=str(trunk))
    inputs = {"trunk": to_dict(trunk_config), "head": to_dict(config)}

    def measure() -> list[dict[str, Any]]:
        run, result = likelihood(config, runs / on / f"{head}-{seed}")
        base = None
        if head != "independent":
            _, base = likelihood(override(config, head__name="independent"), runs / on / f"independent-{seed}")
        return block_records(run, result, on, base)

    return cell(RESULTS / f"{on}-{head}-{seed}.json", inputs, command, measure)


def likelihood(config: RunConfig, folder: Path) -> tuple[LoadedRun, BlockLikelihood]:
    train(config, folder, build)
    run = load_run(str(folder))
    corpus = load_corpus(config.data, config.tokenizer, progress=False)
    return run, block_likelihood(run.model, corpus.stores["validation"], config.data.length)


def print_table(records: Iterable[dict[str, Any]]) -> None:
    """Mean over seeds ± its standard error, one line a number. What is the same for every head (the
    trunk's, the exact sampler's) is printed once."""
    groups: dict[tuple[str, ...], dict[int | None, dict[str, Any]]] = {}
    for r in records:
        shared = r["subject"] in ("trunk", "exact-sampler")
        group = groups.setdefault((r["on"], r["subject"], r["metric"], r.get("positions", "")), {})
        group.setdefault(None if shared else r["train_seed"], r)
    print("\n| on | subject | metric | value | standard error | seeds |\n|---|---|---|---|---|---|")
    for (on, subject, metric, positions), group in sorted(groups.items()):
        mean = seeds_mean(list(group.values()))
        error = f"± {mean['stderr']:.2g} over {mean['stderr_over']}" if "stderr" in mean else ""
        seeds = "" if None in group else ", ".join(map(str, sorted(group)))  # type: ignore[type-var]
        print(f"| {on} | {subject} | {f'{metric} {positions}'.strip()} | {mean['value']:.5g} | {error} | {seeds} |")


if __name__ == "__main__":
    main()
