"""Flow language models of text and their baselines, one network and one budget: bounds, and samples under a judge by calls.

    python -m benchmarks.flow_text --seeds 0                       every cell of the plan that is not there yet, then tables and plot
    python -m benchmarks.flow_text --on wikitext2 --seeds 0        subwords: the baselines, ours, and those with learned codes
    python -m benchmarks.flow_text --orderings --seeds 0           the ablations of the published systems, written in the calls
                                                                   that they are compared in, then what they say
    python -m benchmarks.flow_text --bounds --presets flow-bound flow-mdlm        what they cost alone, no samples: quick seeds
    python -m benchmarks.flow_text --presets flow-flm --seeds 0 --set flow.options.times=uniform      another: a cell of its own

A cell trains (or finds) RUNS/ON/PRESET-SEED, after the runs that it begins with or learns from, all of them together on BUDGET
windows at most; scores 512 held-out windows by the model's first estimator (the bound in continuous time, masked diffusion's NELBO, or exactly; of
a model of blocks at every length, in as many calls together); and writes 128 whole windows from nothing at temperatures 0, 0.7 and 1 of the tokens' own draw, of flows in more than one step at 0 and 1 and at score temperatures 0.8, 1 and 1.2, in 1, 2,
4, 8 and 16 calls of the network, by every sampler it has, a model of blocks (a flow by its first sampler) in 1, 2, 4 and 8 steps a block of every length that has as many tokens; where tokens have times of their own, one token a step too, in 131 calls. The judge is
the preset ON-judge, which has never seen a sample; beside its NLL stand entropy and distinct-n, and the same of real windows. A frozen
teacher writes in 16 calls beside its map. Two commands at once must not train the same run: the second says so. Cells and the plot lie in benchmarks/results/flow-text/, those of ablations and of bounds alone in partial/ there, the samples in RUNS/ON/samples-PRESET-SEED.jsonl.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.cells import cell, settings
from benchmarks.flow_runs import FRONT, Planned, by_calls, largest
from benchmarks.flow_text_tables import (
    CALLS,
    TEACHER,
    plot,
    print_against_teachers,
    print_at_entropy,
    print_bounds,
    print_quality,
)
from benchmarks.orderings import calls_of, needed, print_orderings
from benchmarks.samplers import GRID, SCORE_TEMPERATURES, TEMPERATURES, knobs_of
from eval.flow import FlowRun, Sampling, load_flow
from eval.flow_perplexity import measure_flow
from eval.flow_samples import draw_flow
from eval.frontier import Knobs
from eval.loading import load_run
from eval.quality import quality
from eval.samples import held_out_prompts, write_samples
from flowmap.warp import Warp
from training.config import load_preset, to_dict
from training.loop import train
from training.tasks import build

RESULTS = Path(__file__).parent / "results" / "flow-text"
SUBWORDS: dict[str, Any] = {
    "tokenizer__kind": "bpe", "tokenizer__vocab_size": 2048, "flow__width": 256, "optimizer__lr": 1.0e-3,
    "training__batch_size": 16, "training__evaluate_every": 800, "training__checkpoint_every": 400,
}  # fmt: skip
"""Small batches: what is learned of so many words goes by steps more than by windows."""
OF_SUBWORDS = ("flow-ar", "flow-mdlm", "flow-bd3lm", "flow-leap", "flow-bound", "flow-langflow")
"""The last two have the least bounds of characters among flows."""
PLAN = {
    "characters": (
        "flow-ar", "flow-mdlm", "flow-bd3lm", "flow-flm", "flow-fmlm", "flow-leap", "flow-cfm", "flow-dfm-psd", "flow-dfm-esd",
        "flow-plaid", "flow-cdcd", "flow-langflow", "flow-bound", "flow-adapt", "flow-block-flow", "flow-forcing", "flow-elf", "flow-codar",
    ),
    "wikitext2": OF_SUBWORDS,
    "stdlib": OF_SUBWORDS,
}  # fmt: skip
BUDGET = {"characters": 1200 * 64, "wikitext2": 800 * 64, "stdlib": 800 * 64}
"""Windows of 128 that are read in training, at most: models of blocks have fewer steps, of windows that they read twice. Of subwords as
many as half an hour of a core holds."""
KNOBS = tuple(dict.fromkeys((*TEMPERATURES, *SCORE_TEMPERATURES)))
WINDOWS, NETWORK_CALLS, NUM = 512, 64, 128
"""Scored windows, calls of the network for each, written windows."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", nargs="+", default=["characters"], choices=PLAN)
    parser.add_argument("--presets", nargs="+", help="default: those the plan has")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/flow"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="variants: fields of the preset")
    parser.add_argument("--all", nargs="*", default=[], metavar="KEY=VALUE", help="the same, of the runs before it too")
    parser.add_argument("--orderings", action="store_true", help="the ablations of orderings.py, and what they say")
    parser.add_argument("--bounds", action="store_true", help="no samples, where no whole cell is there")
    parser.add_argument("--kept", action="store_true", help="what is there; trains nothing")
    args = parser.parse_args()
    command, variant = ["python", "-m", "benchmarks.flow_text", *sys.argv[1:]], settings(args.set)
    found, everywhere = [], settings(args.all)
    for on in args.on:
        wanted = [(preset, variant, CALLS) for preset in args.presets or PLAN[on]]
        if args.orderings:
            wanted = [(*one, calls_of(one) if one[1] else CALLS) for one in needed()]
        for (preset, own, calls), seed in product(wanted, args.seeds):
            planned = planned_on(on, preset, seed, args.runs, own, everywhere)
            made = text_cell(on, planned, command, args.kept or args.bounds, calls)
            if args.bounds and not made:
                made = text_cell(on, planned, command, args.kept, ())
            if made:
                print(f"{on} {planned.name}", flush=True)
            found += made
    if found:
        print_bounds(found)
        print_quality(found)
        print_at_entropy(found)
        print_against_teachers(found)
        if args.orderings:
            print_orderings(found)
        if not args.presets:  # a picture is of the whole plan
            name = "-".join(["quality", *args.on, *["orderings"] * args.orderings, *args.all, *args.set])
            plot(found, RESULTS / f"{name.replace('/', '-')}.svg")


def planned_on(
    on: str, preset: str, seed: int, runs: Path, variant: dict[str, Any], everywhere: dict[str, Any]
) -> Planned:
    """A preset's training on a text, and those before it, within the budget of all."""
    budget = min(BUDGET[on], largest([preset]))
    return Planned(preset, runs / on, seed, partial(fields_of, on), variant, everywhere, budget)


def fields_of(on: str, preset: str) -> dict[str, Any]:
    """What a text sets in a preset. Two thousand words have learned codes of 64 numbers where characters are one-hot, a state that would
    be noise of two thousand, and times that follow cross-entropy for those that follow the errors of one-hot codes (even ones
    where parts of a window have times of their own)."""
    if on == "characters":
        return {}
    fields, flow = {**SUBWORDS, "data__name": on}, load_preset(preset).flow
    assert flow is not None
    if flow.codebook == "one-hot":
        fields |= {"flow__codebook": "embedding", "flow__state_size": 64}
        if "decode-error" in str(flow.options.get("times")):
            fields["flow__options__times"] = "running" if flow.noise == "sample" else "uniform"
    return fields


def text_cell(
    on: str, planned: Planned, command: list[str], kept: bool, calls: Sequence[int] = CALLS
) -> list[dict[str, Any]]:
    """calls: of the network, in which samples are written; cells of others than CALLS stand apart."""
    judge_config, judge = load_preset(f"{on}-judge"), planned.folder / "judge"
    part = "" if tuple(calls) == CALLS else "partial"

    def measure() -> list[dict[str, Any]]:
        if calls:
            train(judge_config, judge, build)
        folder, spent = planned.train()
        run = load_flow(str(folder))
        bounds: list[dict[str, Any]] = []
        if not getattr(run.model.map, "finishes", False):  # codes of whole windows have no bound over a table
            lengths = run.model.config.block_lengths
            each = NETWORK_CALLS // len(lengths or [None])  # in all, whatever the number of lengths
            bounds, _ = measure_flow(run, SimpleNamespace(**{**vars(BOUND), "blocks": lengths, "calls": each}))
        prompts = held_out_prompts(run, NUM, 0, run.model.config.length)
        ways = [how for turned in KNOBS for how in ways_at(run, calls, planned.seed, turned)]
        rows = [row for how in ways for row in draw_flow(run, prompts, how, new=run.model.config.length)]
        names = {run.subject: planned.subject, "data": "data"}
        if (before := planned.earlier().get("teacher")) and calls:
            teacher = load_flow(str(before.path))
            usual = teacher.model.generation_config.sampler
            for turned in knobs_of(teacher.model, CALLS[-1]):
                taught = ways_at(teacher, CALLS[-1:], planned.seed, turned)
                how = next(how for how in taught if how.sampler == usual)
                drawn = draw_flow(teacher, prompts, how, new=run.model.config.length)
                rows += [{**row, "subject": TEACHER} for row in drawn]
            names[TEACHER] = f"{planned.subject}: {TEACHER}"
        common: dict[str, Any] = {"on": on, "train_seed": planned.seed, "training_cpu_seconds": round(spent, 1)}
        scored = bounds
        if rows:
            write_samples(planned.folder / part / f"samples-{planned.name}.jsonl", rows)
            scored += quality(rows, load_run(str(judge)), on)
        return [r | common | {"subject": names[r["subject"]]} for r in scored]

    inputs = {
        **planned.inputs(), "judge": to_dict(judge_config), "calls": list(calls), "temperatures": [*TEMPERATURES, *SCORE_TEMPERATURES],
        "windows": [WINDOWS, NETWORK_CALLS, NUM], "grid": GRID,
        "front": FRONT if planned.config().flow.noise == "token" else None,
    }  # fmt: skip
    return cell(RESULTS / part / f"{on}-{planned.name}.json", inputs, command, measure, kept)


def ways_at(run: FlowRun, calls: Sequence[int], seed: int, turned: Knobs) -> list[Sampling]:
    """The ways of writing of which these are among the knobs."""
    temperature, score = turned
    if turned not in {*knobs_of(run.model, 1), *knobs_of(run.model, 2)}:
        return []
    ways = by_calls(run, calls, seed, Warp(temperature), score=score)
    return [how for how in ways if turned in knobs_of(run.model, how.steps)]


BOUND = SimpleNamespace(
    estimator=None, steps=(1,), calls=NETWORK_CALLS, draws=1, sampler="pushforward", seed=0, data=None, text_column="text",
    split="validation", windows=WINDOWS, fit=WINDOWS, length=None, certify=False, from_zero=False,
)  # fmt: skip
"""What `leaplm perplexity` would be asked."""


if __name__ == "__main__":
    main()
