"""`leaplm report RUN…`: everything measured of any runs on one page.

A RUN is a run directory (its training curve, and what probe, perplexity, speed and quality kept there), a JSON
file of records, or a JSONL file of samples.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval import frontier, refinement
from eval.calibration_picture import sections as calibration_sections
from eval.head_table import NOTE, filled, head_rows, wide
from eval.images.pictures import sections as image_sections
from eval.pictures import Point, bars, plot
from eval.records import over_seeds, read_records, write_records
from eval.report import Sample, Section, write_report
from eval.samples import read_samples
from eval.surface import surface_sections

Records = list[dict[str, Any]]
MOST_SAMPLES = 24
INTRO = (
    "Every number below carries its decoding contract; sort the tables by a click on their heads. Lower nats are "
    "better, and validity counts an answer only if all of it was right."
)


def run(args: Any, command: list[str]) -> None:
    records: Records = []
    samples: list[dict[str, Any]] = []
    curves: dict[str, list[Point]] = {}
    for name in args.runs:
        path = Path(name)
        if path.suffix == ".jsonl" and path.is_file():
            samples += read_samples(path)
        elif path.is_file():
            records += read_records(path)
        elif (path / "metrics.jsonl").is_file():
            curves[name] = _curve(path / "metrics.jsonl")
            for file in sorted((path / "records").glob("*.json")):
                records += read_records(file)
            for file in sorted((path / "samples").glob("*.jsonl")):
                samples += read_samples(file)
        else:
            raise ValueError(f"{name} is no run directory, JSON file of records or JSONL file of samples")
    records = list({json.dumps(r, sort_keys=True): r for r in records}.values())  # kept by a run and given as a file
    sections = [
        *_side_by_side(records),
        *_speed_against_quality(records),
        *frontier.sections(records),
        *refinement.sections(records),
        *surface_sections(records),
        *_nll_against_block(records),
        *_validity(records),
        *image_sections(records),
        *calibration_sections(records),
        *_training(curves),
        *_samples(samples),
    ]
    write_report(args.out, args.title, sections, records, INTRO)
    if args.json:
        write_records(args.json, command, records)
    print(f"{args.out}: {len(records)} records, {len(samples)} samples, {len(sections)} sections")


def _text(r: dict[str, Any]) -> str:
    """What was measured on; its split where it is not the usual one."""
    return r["on"] if r.get("split") in (None, "validation", "law") else f"{r['on']}, {r['split']}"


def _label(r: dict[str, Any]) -> str:
    contract = r.get("contract", {})
    if "sampler" in contract and r.get("run"):
        return f"{r['subject']}, {contract['sampler']}, nfe {contract['nfe']}"
    block = contract.get("block", 1) if r.get("run") else 1
    return r["subject"] if block == 1 else f"{r['subject']} K={block}"


def _side_by_side(records: Records) -> list[Section]:
    """A row for each head, where a text's heads have been measured in more than one way."""
    sections = []
    asked = {
        (r["on"], r["contract"]["block"])
        for r in records
        if r["metric"] in ("direct_nll", "accepted_length") and "block" in r.get("contract", {})
    }
    for on, block in sorted(asked):
        rows = filled(head_rows(records, on, block))
        ways = {cell.record["metric"] for cells in rows.values() for cell in cells if cell.record is not None}
        if len(ways) > 1:
            sections.append(Section(f"Heads side by side: {on}, K = {block}", NOTE, table=wide(rows)))
    return sections


def _speed_against_quality(records: Records) -> list[Section]:
    """A point for every way of decoding that was both timed and judged."""
    sections = []
    timed = [r for r in records if r["metric"] == "speedup" and "anchor_fraction" not in r["contract"]]
    for metric, what in (("direct_nll", "nats per token of held-out text"), ("judge_nll", "judge NLL of samples")):
        judged: dict[str, dict[tuple[str, int], Records]] = {}
        for r in records:
            of_trunk = r["metric"] == "nll" and r["subject"] == "trunk" and "positions" not in r
            wanted = r["metric"] == metric or (metric == "direct_nll" and of_trunk)
            if wanted and r["contract"].get("temperature", 1.0) == 1.0:
                way = (r["subject"], r["contract"].get("block", 1))
                judged.setdefault(_text(r), {}).setdefault(way, []).append(r)
        for text, ways in judged.items():
            for on, batch in dict.fromkeys((r["on"], r["contract"]["batch"]) for r in timed):
                series: dict[str, list[Point]] = {}
                for r in timed:
                    found = ways.get((r["subject"], r["contract"]["block"]))
                    if found and (r["on"], r["contract"]["batch"]) == (on, batch):
                        quality = over_seeds(found)
                        point = Point(r["value"], quality["value"], quality.get("stderr", 0.0), _how(r["contract"]))
                        series.setdefault(r["subject"], []).append(point)
                if len(series) > 1:
                    ordered = {name: sorted(points, key=lambda p: p.x) for name, points in series.items()}
                    caption = (
                        f"Right is faster, down is better. Speed of {on}, batch {batch}, as a multiple of the trunk's "
                        f"own loop; quality on {text}; bars are standard errors."
                    )
                    title = f"Speed against quality: {what}"
                    sections.append(Section(title, caption, plot(ordered, "× trunk", what)))
    return sections


def _how(contract: dict[str, Any]) -> str:
    block = f"K={contract['block']}" if contract["block"] > 1 else ""
    return " ".join(filter(None, [block, "compiled" if contract.get("compiled") else ""]))


def _nll_against_block(records: Records) -> list[Section]:
    sections = []
    for metric, title, text in (
        ("block_nll", "Likelihood of a block", "−(1/K) log q of the next K tokens at every position, and the trunk's own chain on the same targets."),
        ("direct_nll", "Likelihood of direct decoding", "The text cut into consecutive blocks, each scored by the head alone: the law of what direct decoding writes."),
    ):  # fmt: skip
        found = [r for r in records if r["metric"] == metric]
        for on in dict.fromkeys(_text(r) for r in found):
            series: dict[str, list[Point]] = {}
            over: set[str] = set()
            for subject in dict.fromkeys(r["subject"] for r in found if _text(r) == on):
                mine = [r for r in found if _text(r) == on and r["subject"] == subject]
                by_block: dict[int, Records] = {}
                for r in mine:
                    by_block.setdefault(r["contract"]["block"], []).append(r)
                means = {k: over_seeds(seeds) for k, seeds in sorted(by_block.items())}
                series[subject] = [Point(k, r["value"], r.get("stderr", 0.0)) for k, r in means.items()]
                over |= {r["stderr_over"] for r in means.values() if "stderr_over" in r}
            ticks = sorted({p.x for line in series.values() for p in line})
            errors = "Bars are standard errors over " + " and ".join(sorted(over))
            sections.append(
                Section(f"{title}: {on}", f"{text} {errors}.", plot(series, "K", "nats per token", ticks=ticks))
            )
    return sections


def _validity(records: Records) -> list[Section]:
    found = [r for r in records if r["metric"] == "validity" and "stratum" not in r]
    sections = []
    for on in dict.fromkeys(r["on"] for r in found):
        parts: dict[str, Records] = {}
        for r in found:
            if r["on"] == on:
                temperature = r.get("contract", {}).get("temperature", 1.0)
                parts.setdefault(_label(r) + ("" if temperature == 1 else f", T = {temperature:g}"), []).append(r)
        means = {label: over_seeds(seeds) for label, seeds in parts.items()}
        values = {label: (r["value"], r.get("stderr", 0.0)) for label, r in means.items()}
        strata = [
            r
            for r in records
            if r["on"] == on and "stratum" in r and r["metric"] in ("validity", "total_variation_exact")
        ]
        sections.append(
            Section(f"Validity: {on}", "Bars are two standard errors.", bars(values), _strata_table(strata))
        )
    return sections


def _strata_table(records: Records) -> list[list[str]]:
    if not records:
        return []
    columns = list(dict.fromkeys((r["subject"], r["metric"]) for r in records))
    head = ["stratum", *(f"{subject}: {'validity' if m == 'validity' else 'exact TV'}" for subject, m in columns)]
    found: dict[tuple[str, str, str], Records] = {}
    for r in records:
        found.setdefault((r["stratum"], r["subject"], r["metric"]), []).append(r)
    cells = {}
    for key, seeds in found.items():
        r = over_seeds(seeds)
        cells[key] = f"{r['value']:.4f}" + (f" ± {r['stderr']:.4f}" if r.get("stderr") else "")
    strata = dict.fromkeys(r["stratum"] for r in records)
    return [head, *([s, *(cells.get((s, *column), "–") for column in columns)] for s in strata)]


def _curve(file: Path, most: int = 200) -> list[Point]:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    training = [Point(line["step"], line["loss"]) for line in lines if line["split"] == "train"]
    return training[:: max(1, len(training) // most)]


def _training(curves: dict[str, list[Point]]) -> list[Section]:
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return []
    return [Section("Training", "Loss of the batch, as it went.", plot(curves, "step", "loss", dots=False))]


def _samples(rows: Sequence[dict[str, Any]]) -> list[Section]:
    if not rows:
        return []
    shown: list[Sample] = []
    for prompt in dict.fromkeys(row["prompt"] for row in rows):
        for row in (r for r in rows if r["prompt"] == prompt):
            name = f"{_label(row)}, temperature {row['contract']['temperature']:g}"
            shown.append(Sample(name, prompt, row["blocks"], row.get("drafts", ())))
    text = f"Each shade is what one pass of the trunk wrote; where a text was refined, the slider goes through its drafts. {min(len(shown), MOST_SAMPLES)} of {len(rows)} samples."
    return [Section("Samples", text, samples=shown[:MOST_SAMPLES])]
