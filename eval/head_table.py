"""Heads side by side on one text at one block size: a row for each head, joined from the records of any measurements.

A column says which records it takes; of those that differ in their training seed it shows the mean. What nobody has
measured is a dash. Marks stand behind a number, so that columns still sort: (bound) is no exact value, (?) a speed whose interval is too wide to be a
result, † a head whose learning rate was not swept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from eval.records import seeds_mean
from mtp.heads import NAMES

Records = Sequence[dict[str, Any]]
SUITES = ("poker", "pairs-64", "skip-64")
TEMPERATURES = (0.0, 0.7, 1.0)
BATCHES = (1, 8, 32)
RULES = ("token", "block")
ROWS = ("trunk", *NAMES, "data")
REFERENCE = "M"
"""The trunk with random weights, whose speeds stand beside the trained one's."""
NOTE = (
    "FLOPs are the head's for each token it adds, the trunk's for each it reads; parameters and training are of the head "
    "at its own K; suites are answered in one block, whatever K is; verified: block rule, T = 1. A head's speed is interleaved with its "
    "trunk's, so between heads × trunk compares; (?): interval wider than ±10%, no result. † learning rate not swept."
)
PARTS = ("positions", "stratum", "beside", "ngram", "position")
"""A record with one of these is of a part of what the columns ask for, as is a contract with one of the next."""
OPTIONS = ("compiled", "threshold", "drawn", "top_k")


@dataclass(frozen=True)
class Column:
    """group: what it shows; title: which of its group; contract: what a record's must hold. scale: shown × scale.
    detail: not in markdown, which is wide enough."""

    group: str
    title: str
    metric: str
    on: str
    contract: Mapping[str, Any] = field(default_factory=dict)
    digits: int = 3
    scale: float = 1.0
    detail: bool = False

    def of(self, subject: str) -> "Column":
        """What the column means for what is no head: the trunk writes a token a pass, and the real text no blocks."""
        if subject == "data":
            return replace(self, contract={})
        if subject != "trunk" or self.metric == "block_nll" or "block" not in self.contract:
            return self
        if self.metric in ("parameters", "flops"):
            return replace(self, scale=1e-6 if self.metric == "flops" else 1.0)
        metric = "nll" if self.metric == "direct_nll" else self.metric
        return replace(self, metric=metric, contract={**self.contract, "block": 1})

    def takes(self, r: dict[str, Any]) -> bool:
        contract = r.get("contract", {})
        whole = not any(r.get(part) is not None for part in PARTS) and r.get("split") != "test"
        plain = not any(contract.get(option) for option in OPTIONS) and contract.get("top_p", 1.0) == 1.0
        return (
            (r["metric"], r["on"]) == (self.metric, self.on) and whole and plain
            and all(contract.get(key) == value for key, value in self.contract.items())
        )  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """record: the mean over training seeds."""

    column: Column
    record: dict[str, Any] | None

    def text(self, error: bool = True) -> str:
        if self.record is None:
            return "–"
        digits, scale = self.column.digits, self.column.scale
        shown = f"{self.record['value'] * scale:,.{digits}f}"
        if error and self.record.get("stderr_over") == "seeds" and self.record["stderr"]:
            shown += f" ± {self.record['stderr'] * scale:.{digits + 1}f}"
        marks = {"(bound)": self.record["kind"] == "bound", "(?)": self.record.get("stable") is False}
        return " ".join([shown, *(mark for mark, held in marks.items() if held)])


def columns(on: str, block: int) -> list[Column]:
    """Those of one text and K."""
    exact, drawn = {"block": block}, {"block": block, "verify": "none"}
    found = [
        Column("parameters", "", "parameters", on, exact, 0),
        Column("MFLOP a token", "", "flops", on, exact, 3, 1e-6 / block),
        Column("training tokens/s", "", "train_tokens_per_second", on, {"cached_states": True}, 0),
        Column("block NLL", "", "block_nll", on, exact),
        Column("direct NLL", "", "direct_nll", on, exact),
        *(Column("validity", suite, "validity", suite, {"temperature": 1.0, "verify": "none"}, 4) for suite in SUITES),
    ]
    for rule in RULES:
        found += [
            Column(f"accepted, {rule} rule", f"T = {t:g}", "accepted_length", on, {**exact, "verify": rule, "temperature": t})
            for t in TEMPERATURES
        ]  # fmt: skip
    ways = {"direct": drawn, "verified": {**exact, "verify": "block"}}
    for where, (way, contract), metric in product((on, REFERENCE), ways.items(), ("tokens_per_second", "speedup")):
        unit, ratio = ("× trunk", True) if metric == "speedup" else ("tokens/s", False)
        group = f"{way} {unit}" + (f" on {REFERENCE}" if where == REFERENCE else "")
        found += [
            Column(
                group, f"batch {b}", metric, where, {**contract, "temperature": 1.0, "batch": b}, 2 if ratio else 0,
                detail=ratio,
            )
            for b in BATCHES
        ]  # fmt: skip
    for group, metric in (("judge NLL", "judge_nll"), ("entropy", "entropy")):
        found += [Column(group, f"T = {t:g}", metric, on, {**drawn, "temperature": t}) for t in TEMPERATURES]
    return found


def head_rows(records: Records, on: str, block: int) -> dict[str, list[Cell]]:
    """Every row, filled or not."""
    by: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for r in records:
        by.setdefault((r["metric"], r["on"], r["subject"]), []).append(r)

    def cell(column: Column, subject: str) -> Cell:
        asked = column.of(subject)
        seeds: dict[Any, dict[str, Any]] = {}
        for r in by.get((asked.metric, asked.on, subject), ()):
            if asked.takes(r):
                seeds.setdefault(r.get("train_seed"), r)
        return Cell(asked, seeds_mean(list(seeds.values())) if seeds else None)

    return {subject: [cell(column, subject) for column in columns(on, block)] for subject in ROWS}


def named(subject: str, cells: Sequence[Cell]) -> str:
    untuned = any(cell.record is not None and cell.record.get("tuned") is False for cell in cells)
    return f"{subject} †" if untuned else subject


def filled(rows: Mapping[str, Sequence[Cell]]) -> dict[str, Sequence[Cell]]:
    return {subject: cells for subject, cells in rows.items() if any(cell.record is not None for cell in cells)}


def wide(rows: Mapping[str, Sequence[Cell]]) -> list[list[str]]:
    """A table's rows, the head first: a column for each number, those that nobody filled left out."""
    kept = [i for i, column in enumerate(zip(*rows.values(), strict=True)) if any(cell.record for cell in column)]
    one = next(iter(rows.values()))
    head = ["head", *(" ".join(filter(None, [one[i].column.group, one[i].column.title])) for i in kept)]
    return [head, *([named(subject, cells), *(cells[i].text() for i in kept)] for subject, cells in rows.items())]


def markdown(rows: Mapping[str, Sequence[Cell]]) -> str:
    """A column for each group, its numbers one behind the other."""
    one = next(iter(rows.values()))
    groups: dict[str, list[int]] = {}
    for i, cell in enumerate(one):
        if cell.column.detail:
            continue
        groups.setdefault(cell.column.group, []).append(i)
    titles = [", ".join(filter(None, [g, " / ".join(one[i].column.title for i in at)])) for g, at in groups.items()]
    lines = [f"| head | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for subject, cells in rows.items():
        parts = [_joined([cells[i] for i in at]) for at in groups.values()]
        lines.append(f"| {named(subject, cells)} | {' | '.join(parts)} |")
    return "\n".join(lines)


def _joined(cells: Sequence[Cell]) -> str:
    if all(cell.record is None for cell in cells):
        return "–"
    return " / ".join(cell.text(error=len(cells) == 1) for cell in cells)
