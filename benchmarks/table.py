"""Every head on the same frozen trunk, one table for a text and a K: likelihood, validity, acceptance, speed, quality.

    python -m benchmarks.table                  what the cells that are there say; a dash for the rest
    python -m benchmarks.table --missing        the commands that would fill it
    python -m benchmarks.table --measure --on stdlib --heads block-chain      the costs that no other benchmark measures

Joined are the cells of benchmarks.heads, benchmarks.acceptance and benchmarks.quality, those of benchmarks.table_costs,
and the speeds of trunk M that `leaplm speed --json` left in benchmarks/results/speed/. What is shown is written to
benchmarks/results/table/ON.json, from which `leaplm report` draws the same tables. The rate of a head marked † is a
guess until benchmarks.rates has swept it.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from os.path import relpath
from pathlib import Path
from typing import Any

from benchmarks.acceptance import acceptance_cell
from benchmarks.head_rates import BLOCKS, RATES, UNTUNED
from benchmarks.heads import TEXTS, suite_cell, text_cell
from benchmarks.quality import TRUNK, quality_cell
from benchmarks.rates import RATES as SWEPT
from benchmarks.rates import rate_cell
from benchmarks.table_costs import RESULTS, speed_cell, training_cell
from eval.head_table import NOTE, REFERENCE, ROWS, SUITES, head_rows, markdown
from eval.records import read_records, seeds_mean, write_records
from mtp.heads import NAMES
from training.data.known import KNOWN, local_paths

Records = list[dict[str, Any]]
SPEED = Path(__file__).parent / "results" / "speed"
OTHER_HEADS = {"--rank", "--options"}
"""Of `leaplm speed`: the head is another than a table's row."""
ORDER = ("rates", "heads", *SUITES, "acceptance", "quality", "training", "speed", REFERENCE)
"""Of the commands: what one makes, a later one reads."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", nargs="+", default=TEXTS, choices=TEXTS)
    parser.add_argument("--blocks", nargs="+", type=int, default=BLOCKS, choices=BLOCKS)
    parser.add_argument("--heads", nargs="+", default=NAMES, choices=NAMES, metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/heads"))
    parser.add_argument("--measure", action="store_true", help="size, training and decoding speed, where not there yet")
    parser.add_argument("--missing", action="store_true", help="print the commands that would fill the tables instead")
    args = parser.parse_args()
    command = ["python", "-m", "benchmarks.table", *sys.argv[1:]]
    commands: list[str] = []
    for on in args.on:
        if on in KNOWN and local_paths(KNOWN[on], None) is None:
            print(f"{on} is not here: leaplm data get {on}")
            continue
        found = Cells(on, args.heads, args.seeds, args.runs, command, args.measure)
        if args.missing:
            commands += commands_for(on, found.absent)
            continue
        for block in args.blocks:
            rows = head_rows(found.records, on, block)
            shown = {subject: cells for subject, cells in rows.items() if subject in (TRUNK, *args.heads, "data")}
            print(f"\n{on}, K = {block}\n{markdown(shown)}")
        print(f"\n{NOTE}")
        write_records(RESULTS / f"{on}.json", command, joined(found.records, on, args.blocks))
    print("\n".join(dict.fromkeys(commands)))


class Cells:
    """What has been measured on one text, and what has not: kind of cell → heads → seeds."""

    def __init__(
        self, on: str, heads: Sequence[str], seeds: Sequence[int], runs: Path, command: list[str], measure: bool
    ) -> None:
        self.on, self.heads, self.seeds = on, heads, seeds
        self.records: Records = []
        self.absent: dict[str, dict[str, list[int]]] = {}
        first = seeds[0]
        for head in heads:
            for seed in seeds:
                self._take("heads", head, seed, text_cell(on, head, seed, runs, command, {}, True))
                for suite in SUITES:
                    self._take(suite, head, seed, suite_cell(suite, head, seed, runs, command, {}, True))
                self._take("acceptance", head, seed, acceptance_cell(on, head, seed, runs, command, True, {}))
                self._take("quality", head, seed, quality_cell(on, head, seed, runs, command, True))
            self._take("speed", head, first, speed_cell(on, head, first, runs, command, not measure))
            if head in UNTUNED and not all(rate_cell(head, rate, runs, command, True) for rate in SWEPT):
                self.absent.setdefault("rates", {})[head] = []
        for seed in seeds:
            self._take("quality", TRUNK, seed, quality_cell(on, TRUNK, seed, runs, command, True))
        self._take("training", TRUNK, first, training_cell(on, NAMES, first, runs, command, not measure))
        timed = reference_speeds(SPEED)
        for head in heads:
            rules = {r["contract"]["verify"] for r in timed if r["subject"] == head}
            if not rules >= {"none", "block"}:
                self.absent.setdefault(REFERENCE, {})[head] = []
        self.records += timed

    def _take(self, kind: str, head: str, seed: int, records: Records) -> None:
        if not records:
            self.absent.setdefault(kind, {}).setdefault(head, []).append(seed)
        self.records += [marked(r) if kind in ("heads", "acceptance", "quality") else r for r in records]


def commands_for(on: str, absent: Mapping[str, Mapping[str, Sequence[int]]]) -> list[str]:
    """What would fill it, in the order of who reads whom; heads with the same seeds in one. absent: kind of cell →
    heads → seeds, none where a kind has none."""
    lines = []
    for kind, heads in sorted(absent.items(), key=lambda item: ORDER.index(item[0])):
        together: dict[tuple[int, ...], list[str]] = {}
        for head, seeds in heads.items():
            together.setdefault(tuple(seeds), []).append(head)
        lines += [_command(on, kind, " ".join(names), " ".join(map(str, s))) for s, names in together.items()]
    return lines


def _command(on: str, kind: str, heads: str, seeds: str) -> str:
    if kind == "rates":
        return f"python -m benchmarks.rates --heads {heads}"
    if kind == REFERENCE:
        blocks = " ".join(map(str, BLOCKS))
        return (
            f"leaplm speed --reference {REFERENCE} --heads {heads} --blocks {blocks} --verify block "
            f"--acceptance {relpath(RESULTS / on)}.json --json {relpath(SPEED / REFERENCE)}-heads.json"
        )
    if kind in ("speed", "training"):
        chosen = f" --heads {heads}" if kind == "speed" else ""
        return f"python -m benchmarks.table --measure --on {on}{chosen} --seeds {seeds}"
    module = kind if kind in ("acceptance", "quality") else "heads"
    return f"python -m benchmarks.{module} --on {kind if kind in SUITES else on} --heads {heads} --seeds {seeds}"


def marked(r: dict[str, Any]) -> dict[str, Any]:
    """With the rate of a head that was trained at a guess."""
    return {**r, "tuned": False, "lr": RATES[r["subject"]]} if r["subject"] in UNTUNED else r


def reference_speeds(folder: Path) -> Records:
    """Decoding of the reference trunk by heads as they are by default, all on one machine: the one that measured most. Of the same
    measurement the last file's counts."""
    found: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.json")):
        made = json.loads(file.read_text())
        if {word.partition("=")[0] for word in made["command"]} & OTHER_HEADS:
            continue
        here = found.setdefault(made["provenance"]["hardware"], {})
        for r in read_records(file):
            contract = r.get("contract", {})
            if r["on"] == REFERENCE and r["metric"] in ("tokens_per_second", "speedup") and "verify" in contract:
                at = (r["metric"], r["subject"], *(contract.get(k) for k in ("block", "verify", "batch", "compiled")))
                here[at] = r
    return list(max(found.values(), key=len, default={}).values())


def joined(records: Records, on: str, blocks: Sequence[int]) -> Records:
    """Every record that the tables show, once, means over seeds; and, for `leaplm speed --acceptance`, the conditional
    acceptance at temperature 1."""
    shown = [
        cell.record
        for block in blocks
        for cells in head_rows(records, on, block).values()
        for cell in cells
        if cell.record is not None
    ]
    groups: dict[tuple[Any, ...], Records] = {}
    for r in records:
        if r["metric"] == "conditional_acceptance" and r["contract"]["temperature"] == 1.0 and r["on"] == on:
            c = r["contract"]
            groups.setdefault((r["subject"], c["block"], c["verify"], r["position"]), []).append(r)
    shown += [seeds_mean(found) for found in groups.values()]
    return [r for i, r in enumerate(shown) if r["subject"] in ROWS and r not in shown[:i]]


if __name__ == "__main__":
    main()
