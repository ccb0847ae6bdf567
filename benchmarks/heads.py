"""Heads side by side, three seeds: validity on the suites, exact likelihood at K = 2, 4, 8 on text.

    python -m benchmarks.heads                      every cell that is not there yet
    python -m benchmarks.heads --on stdlib --heads block-chain independent --seeds 0

Each cell trains (or resumes, or finds trained) its run under --runs, measures it, and is kept in
benchmarks/results/heads/; the tables at the end are RESULTS.md's. Heads: the four of the claims, or any others named. On text a seed has its own trunk,
frozen, and all heads of that seed on it; a head is trained at K = 8 and scored at 2, 4 and 8. Sets
that are not here are left out, with a word.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.cells import cell, cell_name, settings
from benchmarks.head_rates import BLOCKS, RATES
from eval.likelihood import DRAWS, BlockLikelihood, likelihoods
from eval.loading import load_run
from eval.perplexity import measure as measure_text
from eval.records import seeds_mean
from eval.validity.open import OPEN_SUITES
from eval.validity.open_probe import open_cases, probe_open
from eval.validity.probe import probe
from eval.validity.suites import load_suite
from mtp.heads import NAMES, family
from training.config import RunConfig, load_preset, override, to_dict
from training.data.corpus import load_corpus
from training.data.known import KNOWN, local_paths
from training.loop import train
from training.mtp_task import build

RESULTS = Path(__file__).parent / "results" / "heads"
HEADS = ("independent", "first-order-chain", "recurrent-chain", "block-chain")
SUITES = (
    "poker", "poker-frequency", "pairs-64", "skip-64", "dates", "brackets-8", "sums-2", "sudoku4", "smiles-6",
    "poker-draw",
)  # fmt: skip
TEXTS = ("stdlib", "wikitext2", "tinyshakespeare")
NUM = 20_000
"""Samples of a suite, shared among its prompts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", nargs="+", default=[*SUITES, *TEXTS], choices=[*SUITES, *TEXTS])
    parser.add_argument("--heads", nargs="+", default=HEADS, choices=NAMES, metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/heads"))
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="another value in the head's config, such as head.anchor_fraction=1.0: a variant with cells of its own",
    )
    parser.add_argument("--kept", action="store_true", help="the tables of the cells that are there; trains nothing")
    args = parser.parse_args()
    command = ["python", "-m", "benchmarks.heads", *sys.argv[1:]]
    found: list[dict[str, Any]] = []
    variant = settings(args.set)
    for on in args.on:
        if on in KNOWN and local_paths(KNOWN[on], None) is None:
            print(f"{on} is not here: leaplm data get {on}")
            continue
        if on in SUITES and (missing := absent(on)):
            print(f"{on} is left out: {missing}")
            continue
        measure = text_cell if on in TEXTS else suite_cell
        for head in args.heads:
            for seed in args.seeds:
                found += (made := measure(on, head, seed, args.runs, command, variant, args.kept))
                if made:
                    print(f"{on} {head} seed {seed}", flush=True)
    print_tables(found)


law_of = cache(load_suite)


def absent(suite: str) -> str | None:
    """What a suite needs that is not installed here."""
    try:
        law_of(suite)
    except ValueError as error:
        return str(error)
    return None


def suite_cell(
    suite: str, head: str, seed: int, runs: Path, command: list[str], variant: dict[str, Any], kept: bool
) -> list[dict[str, Any]]:
    """The head, and the same model's trunk one token a pass."""
    config = override(load_preset(suite), head__name=head, seed=seed, **variant)
    name = cell_name(head, seed, variant)

    def measure() -> list[dict[str, Any]]:
        folder = runs / suite / name
        train(config, folder, build)
        run, law = load_run(str(folder)), law_of(suite)
        made = probe(run, law, num=NUM, seed=seed).records
        alone = probe(run, law, num=NUM, seed=seed, block=1).records
        return made + [{**r, "beside": head} for r in alone if r["subject"] == "trunk"]

    inputs = {**to_dict(config), "law": law_of(suite).fingerprint, "num": NUM}
    return cell(RESULTS / f"{suite}-{name}.json", inputs, command, measure, kept)


def text_cell(
    on: str, head: str, seed: int, runs: Path, command: list[str], variant: dict[str, Any], kept: bool
) -> list[dict[str, Any]]:
    """Heads on the frozen trunk of that seed; likelihood of the whole validation split, and on source code
    whether continuations parse."""
    trunk_config, trunk = override(load_preset(f"{on}-trunk"), seed=seed), runs / on / f"trunk-{seed}"
    config = override(text_config(on, head, seed, trunk), **variant)
    name = cell_name(head, seed, variant)
    text = load_corpus(config.data, trunk_config.tokenizer).facts["fingerprint"]
    stated = to_dict(override(config, trunk__pretrained="trunk"))  # by what it is, not where it lies
    blocks = scored_blocks(config)
    inputs = {"trunk": to_dict(trunk_config), "head": stated, "blocks": list(blocks), "text": text}
    if head != "independent":
        inputs["base rate"] = RATES["independent"]
    if not family(head).exact:
        inputs["draws"] = DRAWS

    def measure() -> list[dict[str, Any]]:
        folder = runs / on / name
        train(trunk_config, trunk, build)
        train(config, folder, build)
        run = load_run(str(folder))
        base = {} if head == "independent" else independent(on, seed, runs, tuple(variant.items()))
        store = load_corpus(config.data, config.tokenizer, progress=False).stores["validation"]
        records = measure_text(run, store, on, "validation", config.data.length, blocks, base)
        if on == "stdlib":
            suite = OPEN_SUITES["python"]()
            for block in (1, *blocks) if head == "independent" else blocks:  # 1 is the trunk, one for all
                records += probe_open(run, suite, open_cases(run, suite), num=1000, seed=seed, block=block)
        return records

    found = cell(RESULTS / f"{on}-{name}.json", inputs, command, measure, kept)
    # a frozen trunk's seed is no part of a head's run; here it is the head's own
    return [{**r, "train_seed": seed} if r["subject"] == "trunk" else r for r in found]


def text_config(on: str, head: str, seed: int, trunk: Path) -> RunConfig:
    return override(
        load_preset(f"{on}-head"),
        head__name=head,
        head__block_size=max(BLOCKS),
        seed=seed,
        trunk__pretrained=str(trunk),
        optimizer__lr=RATES[head],
    )


@cache
def independent(on: str, seed: int, runs: Path, variant: tuple[tuple[str, Any], ...]) -> dict[int, BlockLikelihood]:
    """That head's blocks, trained alike, which the share of the gap closed is a share of."""
    config = override(text_config(on, "independent", seed, runs / on / f"trunk-{seed}"), **dict(variant))
    folder = runs / on / cell_name("independent", seed, dict(variant))
    train(config, folder, build)
    store = load_corpus(config.data, config.tokenizer, progress=False).stores["validation"]
    return likelihoods(load_run(str(folder)).model, store, config.data.length, scored_blocks(config)).blocks


def scored_blocks(config: RunConfig) -> tuple[int, ...]:
    """Those of BLOCKS that the head was trained for."""
    return tuple(block for block in BLOCKS if block <= config.head.block_size)


def print_tables(records: Sequence[dict[str, Any]]) -> None:
    """Means over seeds ± their standard error, or of one seed the value alone."""
    by: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for r in records:
        key = (r["on"], r["subject"], r["contract"].get("block"), r["metric"], r.get("positions"), r.get("stratum"))
        by.setdefault((*key, r.get("beside")), []).append(r)

    def value(*key: Any, digits: int = 3) -> str:
        found = by.get((*key, *[None] * (7 - len(key))))
        if not found:
            return "–"
        own = {r.get("train_seed"): r for r in found}
        mean = seeds_mean(list(own.values()))
        error = f" ± {mean['stderr']:.{digits + 1}f}" if mean.get("stderr_over") == "seeds" else ""
        return f"{mean['value']:.{digits}f}{error}"

    for on in dict.fromkeys(r["on"] for r in records if r["metric"] == "direct_nll"):
        print(f"\n{on}: the trunk's own chain {value(on, 'trunk', 1, 'nll')} nats a token")
        print("| head | K | block NLL | direct NLL | positions 2–K | trunk there | gap closed | parses |")
        print("|---|---|---|---|---|---|---|---|")
        for head, k in product(NAMES, BLOCKS):
            if (on, head, k, "block_nll", None, None, None) in by:
                cells = [
                    value(on, head, k, "block_nll"),
                    value(on, head, k, "direct_nll"),
                    value(on, head, k, "nll", f"2-{k}"),
                    value(on, "trunk", k, "nll", f"2-{k}"),
                    value(on, head, k, "gap_closed", f"2-{k}"),
                    value("python", head, k, "validity") if on == "stdlib" else "–",
                ]
                print(f"| {head} | {k} | " + " | ".join(cells) + " |")
        print(
            "\n| head, K = 4 | parameters, M | of the trunk's | MFLOP a block | of a trunk's token | bits a byte, direct |"
        )
        print("|---|---|---|---|---|---|")
        for head in (head for head in NAMES if (on, head, 4, "parameters", None, None, None) in by):
            size, cost = (by[on, head, 4, metric, None, None, None][0]["value"] for metric in ("parameters", "flops"))
            own, token = (
                by[on, "trunk", 4, metric, None, None, None][0]["value"] for metric in ("parameters", "flops")
            )
            print(
                f"| {head} | {size / 1e6:.2f} | {size / own:.2f} | {cost / 1e6:.1f} | {cost / token:.2f} | "
                f"{value(on, head, 4, 'bits_per_byte')} |"
            )
    print("\n| suite | head | K | validity | the same model's trunk alone | TV | exact sampling's TV | exact TV |")
    print("|---|---|---|---|---|---|---|---|")
    suites = dict.fromkeys(r["on"] for r in records if r["metric"] == "total_variation")
    for on, head in product(suites, NAMES):
        for k in sorted({key[2] for key in by if key[:2] == (on, head)}):
            cells = [
                value(on, head, k, "validity", digits=4),
                value(on, "trunk", 1, "validity", None, None, head, digits=4),
                value(on, head, k, "total_variation", digits=4),
                value(on, "exact-sampler", k, "total_variation", digits=4),
                value(on, head, k, "total_variation_exact", digits=4),
            ]
            print(f"| {on} | {head} | {k} | " + " | ".join(cells) + " |")
            for name in dict.fromkeys(key[5] for key in by if key[:3] == (on, head, k) and key[5]):
                cells = [
                    value(on, head, k, "validity", None, name, digits=4),
                    value(on, "trunk", 1, "validity", None, name, head, digits=4),
                    value(on, head, k, "total_variation", None, name, digits=4),
                    value(on, "exact-sampler", k, "total_variation", None, name, digits=4),
                    value(on, head, k, "total_variation_exact", None, name, digits=4),
                ]
                print(f"| {on}: {name} | {head} | {k} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
