"""`leaplm probe`: one table as it goes, records, and a page with heat maps."""

from typing import Any

from eval.loading import load_run
from eval.pictures import standalone
from eval.records import write_records
from eval.report import Section, write_report
from eval.tables import print_row
from eval.validity.heat import suite_heat_map
from eval.validity.probe import Probe, probe
from eval.validity.suites import load_suite
from mtp.decoding.warp import Warp


def run(args: Any, command: list[str]) -> None:
    suite = load_suite(args.suite)
    warp = Warp(args.temperature, args.top_p)
    if args.num < len(suite.laws) or args.batch < 1:
        raise ValueError(
            f"--num {args.num} must give each of the {len(suite.laws)} prompts a sample, --batch at least 1"
        )
    probes = []
    print_row("", "validity", "TV", "TV exact", "exact sampler's TV", "coverage")
    for name in args.runs:
        done = probe(load_run(name), suite, num=args.num, batch=args.batch, warp=warp, seed=args.seed, block=args.block)
        probes.append(done)
        print_row(done.subject, *summary(done))
    records = [r for p in probes for r in p.records]
    if args.json:
        write_records(args.json, command, records)
    if args.picture:
        args.picture.parent.mkdir(parents=True, exist_ok=True)
        args.picture.write_text(standalone(suite_heat_map(probes)))
    if args.report:
        text = "First word by last word: the true law, then what each model drew."
        write_report(
            args.report,
            f"Joint validity on {suite.name}",
            [Section("Heat maps", text, suite_heat_map(probes))],
            records,
        )


def summary(p: Probe) -> tuple[str, ...]:
    """Cells of one printed row."""

    def value(metric: str, subject: str) -> str:
        found = [r for r in p.records if r["metric"] == metric and r["subject"] == subject]
        if not found:
            return "–"
        error = found[0].get("stderr")
        return f"{found[0]['value']:.4f}" + (f" ± {error:.4f}" if error is not None else "")

    own = p.subject
    return (
        value("validity", own), value("total_variation", own), value("total_variation_exact", own),
        value("total_variation", "exact-sampler"), value("coverage", own),
    )  # fmt: skip
