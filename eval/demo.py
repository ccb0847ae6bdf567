"""`leaplm demo`: the main job end to end on embedded data.

Heads on two suites say what a factorised head gets wrong and a chain right; heads on a trunk trained
on the standard library's source say the same of real text. One table as it goes, then summary.json
and report.html. The same command again goes on where it stopped.
"""

import time
from pathlib import Path
from typing import Any

from eval.block_records import block_records
from eval.likelihood import BlockLikelihood, block_likelihood
from eval.loading import LoadedRun, load_run
from eval.pictures import bars, lines
from eval.records import write_records
from eval.report import Sample, Section, write_report
from eval.tables import print_row
from eval.validity.command import summary
from eval.validity.heat import suite_heat_map
from eval.validity.probe import Probe, probe
from eval.validity.suites import load_suite
from flowmap.warp import Warp
from mtp.decoding.direct import decode, pad_left
from training.config import load_preset, override
from training.data.corpus import load_corpus
from training.loop import train
from training.mtp_task import build

HEADS = ("independent", "first-order-chain", "recurrent-chain", "block-chain")
TEXT_HEADS = ("independent", "recurrent-chain", "block-chain")
FAST_TEXT_HEADS = ("independent", "block-chain")
UNDERTRAINED = (
    " This trunk was trained so briefly that a head, which has layers of its own, does better inside a block than "
    "the trunk alone: more than the whole gap is closed, and that says nothing of a finished trunk."
)
PROMPTS = (
    "    def __init__(self, name, value=None):\n",
    'def read(path, mode="r"):\n    """',
    "import os\nimport sys\n\nclass ",
)
INTRO = (
    "A parallel decoder emits several tokens from one forward pass. If it draws them independently, each word may be "
    "likely and the phrase impossible. A joint head models them together. Here both are trained alike and drawn from "
    "alike: temperature 1, no retry, all tokens of a block after one pass of the trunk."
)


def run(out: Path, fast: bool, command: list[str]) -> None:
    """The fast form's runs lie in a folder of their own: the two have other lengths."""
    started = time.perf_counter()
    runs = out / ("fast" if fast else "full")
    sections, records = [], []
    for name, chance in (("poker", 10 / 36), ("skip-64", 1 / 64)):
        probes = _suite(name, runs, fast)
        records += [r for p in probes for r in p.records]
        sections.append(_suite_section(name, probes, chance))
    text_section, text_records = _text(runs, fast)
    records += text_records
    write_records(out / "summary.json", command, records)
    write_report(
        out / "report.html", "What is lost when tokens are drawn apart", [*sections, *text_section], records, INTRO
    )
    print(f"\n{out / 'report.html'} and {out / 'summary.json'}, {time.perf_counter() - started:.0f} s")


def _suite(name: str, runs: Path, fast: bool) -> list[Probe]:
    preset = load_preset(name)
    if fast:
        preset = override(preset, training__steps={"poker": 150, "skip-64": 250}[name], training__batch_size=256)
    suite, probes = load_suite(name), []
    print_row(f"\n{name}", "validity", "TV", "TV exact", "exact sampler's TV", "coverage")
    for head in HEADS:
        folder = runs / name / head
        train(override(preset, head__name=head), folder, build)
        probes.append(probe(load_run(str(folder)), suite, num=5000 if fast else 20_000))
        print_row(head, *summary(probes[-1]))
    return probes


def _suite_section(name: str, probes: list[Probe], chance: float) -> Section:
    shown = [p for p in probes if p.subject in ("independent", "first-order-chain", "block-chain")]
    shown = shown if name.startswith("skip") else [p for p in shown if p.subject != "first-order-chain"]
    validity = {
        p.subject: next((r["value"], r["stderr"]) for r in p.records if r["metric"] == "validity") for p in probes
    }
    texts = {
        "poker": "Six poker hands of two words, equally likely. First word by last word, in per cent: the true law, what an "
        "independent head draws, what a joint head draws. The dashed line is what the right marginals give when drawn apart, 10/36.",
        "skip-64": "Three words: a, an unrelated word, and the partner of a, with 64 pairs. What is joint skips a word, so a "
        "first-order chain is at chance (1/64, dashed) like the independent head. First word by last word.",
    }
    return Section(f"{name}: valid answers", texts[name], suite_heat_map(shown) + "<br>" + bars(validity, chance))


def _text(runs: Path, fast: bool) -> tuple[list[Section], list[dict[str, Any]]]:
    trunk_config, head_config = load_preset("demo-trunk"), load_preset("demo-head")
    if fast:
        trunk_config = override(trunk_config, training__steps=150)
        head_config = override(head_config, training__steps=60)
    trunk = runs / "stdlib" / "trunk"
    train(trunk_config, trunk, build)
    corpus = load_corpus(trunk_config.data, trunk_config.tokenizer, progress=False)
    print_row("\nstdlib, nats/token", "position 2", "position 3", "position 4", "mean 2–4", "gap closed", "parameters")
    runs_of: dict[str, LoadedRun] = {}
    likelihoods: dict[str, BlockLikelihood] = {}
    records: list[dict[str, Any]] = []
    rows = []
    for head in FAST_TEXT_HEADS if fast else TEXT_HEADS:
        folder = runs / "stdlib" / head
        train(override(head_config, head__name=head, trunk__pretrained=str(trunk)), folder, build)
        run = runs_of[head] = load_run(str(folder))
        likelihoods[head] = block_likelihood(run.model, corpus.stores["validation"], trunk_config.data.length)
        base = likelihoods["independent"] if head != "independent" else None
        made = block_records(run, likelihoods[head], "stdlib", base)
        rows.append(_text_row(made, head))
        print_row(*rows[-1])
        records += [r for r in made if r["subject"] == head or head == "independent"]
    rows.append(_text_row(records, "trunk"))
    print_row(*rows[-1])
    curves = {name: result.means()[0].tolist() for name, result in likelihoods.items()}
    curves["trunk"] = likelihoods["independent"].means()[1].tolist()
    text = (
        "Source code of the standard library, modules held out from training. Every head stands on the same frozen trunk; "
        "position 1 is the trunk's own. Lower is better; the trunk's own chain, one token a pass, is the floor."
    )
    sections = [
        Section(
            "Real text: likelihood inside a block",
            text + (UNDERTRAINED if curves["trunk"][1] > curves["block-chain"][1] else ""),
            lines(curves, "position in the block", "nats per token"),
            [["nats/token", "position 2", "position 3", "position 4", "mean 2–4", "gap closed", "parameters"], *rows],
        ),
        Section(
            "Samples",
            "Temperature 0.8. Each shade is one pass of the trunk: the trunk alone writes a token a pass, the heads four.",
            samples=[s for prompt in PROMPTS for s in _samples(prompt, load_run(str(trunk)), runs_of)],
        ),
    ]
    return sections, records


def _text_row(records: list[dict[str, Any]], subject: str) -> list[str]:
    mine = {(r["metric"], r.get("positions")): r["value"] for r in records if r["subject"] == subject}
    nll = [f"{mine['nll', positions]:.3f}" for positions in ("2", "3", "4", "2-4")]
    closed = mine.get(("gap_closed", "2-4"))
    return [subject, *nll, "–" if closed is None else f"{closed:.1%}", f"{mine['parameters', None]:,.0f}"]


def _samples(prompt: str, trunk: LoadedRun, heads: dict[str, LoadedRun]) -> list[Sample]:
    samples = []
    for run in (trunk, heads["independent"], heads["block-chain"]):
        tokenizer = run.tokenizer
        ids = [tokenizer.bos_token_id, *tokenizer.encode(prompt)]
        out = decode(
            run.model,
            *pad_left([ids], 0),
            max_new_tokens=64,
            warp=Warp(0.8),
            seed=1,
            stop_tokens=(tokenizer.eos_token_id,),
        )
        text = out.tokens[0, : out.lengths[0]]
        samples.append(Sample(run.subject, prompt, [tokenizer.decode(block) for block in text.split(run.block_size)]))
    return samples
