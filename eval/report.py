"""A page that explains itself: pictures, samples, every record in a table. One file, no network."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from training.provenance import provenance

MOST_ROWS = 5000
"""Records shown, at some 300 bytes each: the page stays below 6 MB."""


@dataclass(frozen=True)
class Sample:
    """A prompt and what followed, block by block: each block came from one trunk pass. drafts: of a text that was refined,
    as every pass of the network had it."""

    subject: str
    prompt: str
    blocks: Sequence[str]
    drafts: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """picture: SVG text. table: rows of cells, the first row is the head."""

    title: str
    text: str = ""
    picture: str = ""
    table: Sequence[Sequence[str]] = field(default_factory=list)
    samples: Sequence[Sample] = field(default_factory=list)


def write_report(
    path: Path, title: str, sections: Sequence[Section], records: Sequence[dict[str, Any]], intro: str = ""
) -> None:
    """One self-contained HTML file."""
    from jinja2 import Environment

    template = Environment(autoescape=True).from_string(
        files("eval").joinpath("report.html").read_text(encoding="utf-8")
    )
    where = provenance()
    rows = [_row(r) for r in records[:MOST_ROWS]]
    page = template.render(
        title=title, intro=intro, sections=sections, records=rows, left_out=len(records) - len(rows), where=where
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _row(record: dict[str, Any]) -> dict[str, str]:
    contract = record.get("contract", {})
    shown = [f"{key} {value}" for key, value in contract.items() if value is not None]
    shown += [
        f"{key} {record[key]}"
        for key in ("split", "n", "train_seed", "seeds", "ngram", "run")
        if record.get(key) is not None
    ]
    error = record.get("stderr")
    return {
        "metric": record["metric"],
        "on": " · ".join(filter(None, [record["on"], record.get("stratum"), record.get("positions")])),
        "subject": record["subject"],
        "value": f"{record['value']:.5g}",
        "stderr": "" if error is None else f"{error:.2g} ({record.get('stderr_over')})",
        "unit": record["unit"],
        "kind": record["kind"],
        "contract": ", ".join(shown),
    }
