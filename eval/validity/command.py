"""`leaplm probe`: one table as it goes, records, and a page with heat maps."""

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

from eval.flow import load_flow, samplings
from eval.loading import load_run, model_type
from eval.pictures import standalone
from eval.records import keep_records, write_records
from eval.report import Section, write_report
from eval.tables import print_row
from eval.validity.flow_probe import probe_flow
from eval.validity.heat import suite_heat_map
from eval.validity.open import OPEN_SUITES, OpenSuite
from eval.validity.open_probe import open_cases, probe_open
from eval.validity.probe import Probe, probe
from eval.validity.suites import Suite, load_suite
from eval.validity.ways import Way
from flowlm import MODEL_TYPES
from flowlm.rounding import DECODERS
from flowmap.warp import Warp

MOST_OPEN = 2000
"""Samples of an open suite: each is a text of its own."""


def run(args: Any, command: list[str]) -> None:
    if args.suite in OPEN_SUITES:
        _run_open(OPEN_SUITES[args.suite](), Warp(args.temperature, args.top_p), args, command)
        return
    suite = load_suite(args.suite)
    if args.num < len(suite.laws) or args.batch < 1:
        raise ValueError(
            f"--num {args.num} must give each of the {len(suite.laws)} prompts a sample, --batch at least 1"
        )
    probes = []
    print_row("", "validity", "TV", "TV exact", "exact sampler's TV", "coverage")
    for name in args.runs:
        made = (_flow_probes if model_type(name) in MODEL_TYPES else _probes)(name, suite, args)
        for done in made:
            print_row(" ".join([done.subject, *_steps(done)]), *summary(done))
        probes += made
        how = f"probe-{suite.name}-{made[0].subject}{_how(args)}"
        keep_records(name, how, command, [r for done in made for r in done.records])
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


def _probes(name: str, suite: Suite, args: Any) -> list[Probe]:
    """One for each decoder."""
    if foreign := [decoder for decoder in args.decoder if decoder in DECODERS]:
        raise ValueError(f"--decoder {foreign[0]}: {name} is no flow language model")
    run, warp = load_run(name), Warp(args.temperature, args.top_p)
    how: dict[str, Any] = {"num": args.num, "batch": args.batch, "warp": warp, "seed": args.seed, "block": args.block}
    ways = [Way(decoder, args.verify, args.ending) for decoder in args.decoder]
    return [probe(run, suite, way=way, **how) for way in ways]


def _flow_probes(name: str, suite: Suite, args: Any) -> list[Probe]:
    """One for each decoder and number of steps."""
    decoders = [None] if args.decoder == ("joint",) else args.decoder
    if not {*decoders} <= {None, *DECODERS} or (args.verify, args.ending) != (None, "token"):
        raise ValueError(
            f"{name} writes windows: leave --verify and --ending out, and of --decoder take {' or '.join(DECODERS)}"
        )
    run, warp = load_flow(name), Warp(args.temperature, args.top_p)
    asked = [SimpleNamespace(block=args.block, decoder=decoder, **vars(args.refining)) for decoder in decoders]
    how = [each for one in asked for each in samplings(run, args.steps, args.refining.sampler, warp, args.seed, one)]
    return [probe_flow(run, suite, each, num=args.num, batch=args.batch) for each in how]


def _steps(done: Probe) -> list[str]:
    contract = done.records[0]["contract"]
    if "sampler" in contract:
        decoder = f" + {contract['decoder_calls']} of its decoder" if "decoder_calls" in contract else ""
        return [f"{contract['sampler']}, nfe {contract['nfe']}{decoder}"]
    return [] if contract["verify"] == "none" else [f"({contract['verify']}, {contract['trunk_passes']} passes)"]


def _run_open(suite: OpenSuite, warp: Warp, args: Any, command: list[str]) -> None:
    if args.picture:
        raise ValueError(f"suite {suite.name} has no heat map: leave --picture out")
    if args.decoder != ("joint",) or args.ending != "token":
        raise ValueError(f"suite {suite.name} reads code up to a line's end: leave --decoder and --ending out")
    records: list[dict[str, Any]] = []
    print_row("", "validity", "samples", "prompts")
    for name in args.runs:
        run = load_run(name)
        cases = open_cases(run, suite)
        num = min(args.num, MOST_OPEN)
        made = probe_open(run, suite, cases, num=num, warp=warp, seed=args.seed, block=args.block)
        for r in made if not records else made[:1]:
            print_row(r["subject"], f"{r['value']:.4f} ± {r['stderr']:.4f}", str(r["n"]), str(r["prompts"]))
        keep_records(name, f"probe-{suite.name}-{made[0]['subject']}{_how(args)}", command, made)
        records += made
    if args.json:
        write_records(args.json, command, records)
    if args.report:
        write_report(args.report, f"Joint validity on {suite.name}", [], records)


NAMED = (
    "decoder", "verify", "ending", "temperature", "top_p", "block", "sampler", "steps", "self_conditioning", "delay", "order", "grid",
    "renoise", "guidance", "score_temperature",
)  # fmt: skip
"""Options that say what is drawn from, as they follow each other in a file's name."""


def _how(args: Any) -> str:
    """What sets a probe apart from the usual one, in its file's name."""
    usual = {field.name: field.default for part in (args, args.refining) for field in fields(part)}
    asked = {**vars(args), **vars(args.refining)}
    changed = {name: asked[name] for name in NAMED if asked[name] != usual[name]}
    told = {name: ",".join(map(str, value)) if isinstance(value, tuple) else value for name, value in changed.items()}
    return "".join(f"-{name}-{value}" for name, value in told.items())


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
