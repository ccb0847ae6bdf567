"""PPL(B, K): what a token costs by block length and refinement steps, at which speed, between an autoregressive model and
one that writes whole windows; joint heads on the same suite, from independent tokens to the exact law.

    python -m benchmarks.surface                          every cell that is not there yet, then tables and the figure
    python -m benchmarks.surface --on brackets-8 --seeds 0 --heads --set training.steps=200
    python -m benchmarks.surface --scores                 no speeds, which want an idle machine; without --scores they follow

Three models share one network, data and budget: blocks (all lengths in one model), whole (windows alone) and
autoregressive. A cell trains (or finds) RUNS/ON/KIND-SEED and scores it as `leaplm perplexity` does; its speeds are a cell of their own:

    nll                 k-step at K = 0, 1, 2, 4, … (a bound), vlb (K = ∞, a bound), exact of the autoregressive model, and of blocks
                        of one token at K = 0 whose state is zero; of a suite's whole law, Monte Carlo error inside a cell
    tokens_per_second   of the sampler that the bound is of (ddpm, K + 1 calls a block), turns taken
    block_nll           of heads on a suite whose answers are one block: exact, or a bound of so many draws, by the head's steps

Text is characters, whose trunk has other tokens: its heads stand in a picture of their own, from the cells of `benchmarks.heads`. Cells and
the figure lie in benchmarks/results/surface/.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.cells import cell, cell_name, settings
from benchmarks.flow_runs import stated
from benchmarks.flow_steps import bound
from benchmarks.heads import RESULTS as HEAD_CELLS
from eval.flow import FlowRun, load_flow
from eval.flow_perplexity import measure_flow
from eval.flow_text import scored_text
from eval.loading import load_run
from eval.pictures import beside, standalone
from eval.records import record, seeds_mean
from eval.speed.timing import interleaved, load_average
from eval.surface import ENDLESS, by_block, levels, surface_sections
from eval.validity.suites import Suite, load_suite
from flowlm.token_map import Known
from flowmap.rng import Rng
from training.config import RunConfig, load_preset, override, to_dict
from training.data.cases import encode_suite
from training.loop import train
from training.mtp_task import build as build_heads
from training.tasks import build

RESULTS = Path(__file__).parent / "results" / "surface"
PLAN = {"brackets-8": "flow-block-brackets-8", "characters": "flow-block-flow"}
"""The preset of blocks on each text."""
TRUNK = {"characters": "wikitext2"}
"""The text of benchmarks.heads that these are the characters of."""
KINDS = ("blocks", "whole", "autoregressive")
HEADS = ("independent", "first-order-chain", "recurrent-chain", "block-chain", "flow-map")
STEPS = (0, 1, 2, 4, 8, 16)
SCORING = {
    "brackets-8": {"calls": 256, "windows": 1024, "fit": 1024},
    "characters": {"calls": 16, "windows": 256, "fit": 256},
}
DRAWS, ANSWERS = 4096, 256
"""Of the noise for each block of a head that is not exact; blocks scored at most."""
BATCH, ROUNDS = 64, 5
"""Windows written at once, and turns."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", nargs="+", default=list(PLAN), choices=list(PLAN))
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--heads", nargs="*", default=HEADS, choices=HEADS, metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS, help="K")
    parser.add_argument("--scores", action="store_true", help="no speeds")
    parser.add_argument("--runs", type=Path, default=Path("runs/surface"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="variants: fields of the preset")
    parser.add_argument("--kept", action="store_true", help="what is there; trains nothing")
    args = parser.parse_args()
    command, variant = ["python", "-m", "benchmarks.surface", *sys.argv[1:]], settings(args.set)
    for on in args.on:
        found: list[dict[str, Any]] = []
        for kind, seed in product(args.kinds, args.seeds):
            made = model_cells(on, kind, seed, args.steps, args.runs, command, variant, args.kept, args.scores)
            found += made
            if made:
                print(f"{on} {kind} seed {seed}", flush=True)
        for head, seed in product(args.heads, args.seeds):
            found += head_cell(on, head, seed, args.runs, command, args.kept)
        if found:
            print_table(found, on)
            draw(found, RESULTS / ("-".join(["surface", on, *args.set]).replace("/", "-") + ".svg"))


def planned(on: str, kind: str, seed: int, variant: dict[str, Any]) -> RunConfig:
    """The three differ in what they write at once, and nothing else."""
    config = override(load_preset(PLAN[on]), seed=seed, **variant)
    assert config.flow is not None
    if kind != "blocks":
        config.flow = replace(config.flow, block_lengths=[], noise="sample")
    if kind == "autoregressive":
        config.flow = replace(config.flow, objective="autoregressive", options={}, denoiser_first=None)
    config.flow = replace(config.flow, name=kind)
    return config


def model_cells(
    on: str, kind: str, seed: int, steps: Sequence[int], runs: Path, command: list[str], variant: dict[str, Any], kept: bool, scores: bool
) -> list[dict[str, Any]]:  # fmt: skip
    config, name = planned(on, kind, seed, variant), cell_name(kind, seed, variant)
    suite = suite_of(on)

    def trained() -> FlowRun:
        train(config, runs / on / name, build)
        return load_flow(str(runs / on / name))

    def score() -> list[dict[str, Any]]:
        run = trained()
        records = [r for r in likelihoods(run, steps, SCORING[on]) if r["metric"] == "nll"]
        named = [r | {"on": on, "train_seed": seed} for r in records]  # of a text by its symbols
        return named + ([] if suite is None else [entropy(run, suite, on)])

    inputs = {**stated(config), **({} if suite is None else {"law": suite.fingerprint}), "k": list(steps)}
    scoring, timing = {"scoring": SCORING[on]}, {"timing": {"batch": BATCH, "rounds": ROUNDS}}
    found = cell(RESULTS / f"{on}-{name}.json", inputs | scoring, command, score, kept)
    timed = partial(speeds, steps=steps, on=on, seed=seed)
    return found + cell(
        RESULTS / f"{on}-{name}-speed.json", inputs | timing, command, lambda: timed(trained()), kept or scores
    )


def suite_of(on: str) -> Suite | None:
    return load_suite(on) if load_preset(PLAN[on]).data.suite else None


def likelihoods(run: FlowRun, steps: Sequence[int], scoring: dict[str, int]) -> list[dict[str, Any]]:
    """By every estimator that is a bound or exact, at all block lengths."""
    lengths = run.model.config.block_lengths
    common = {"data": None, "length": None, "text_column": "text", "split": "validation", "draws": DRAWS, "seed": 0}
    common |= {"certify": False, "sampler": "pushforward", **scoring}

    def scored(estimator: str | None, k: Sequence[int] = (), from_zero: bool = False, blocks: Any = lengths):
        asked = {"estimator": estimator, "steps": tuple(k), "from_zero": from_zero, "blocks": blocks}
        return measure_flow(run, SimpleNamespace(**common, **asked))[0]

    if run.model.config.model_type == "leaplm-autoregressive":
        return scored(None)
    found = scored("k-step", steps) + scored("vlb")
    return found + (scored("k-step", (0,), True, [1]) if lengths and 1 in lengths else [])


@torch.no_grad()
def speeds(run: FlowRun, steps: Sequence[int], on: str, seed: int) -> list[dict[str, Any]]:
    """Windows behind what a suite has known in each, one of its prompts or nothing."""
    lengths = run.model.config.block_lengths or [None]
    local = run.model.config.model_type == "leaplm-flow"
    ways: dict[str, Any] = {}
    facts: dict[str, dict[str, Any]] = {}
    for block, k in product(lengths, steps if local else (None,)):
        states = scored_text(run, None, "text", "validation", BATCH, 1, block).states
        pick = torch.arange(BATCH, device=states.tokens.device) % states.size
        nothing = torch.zeros_like(states.tokens, dtype=torch.bool)
        told = Known(states.tokens, nothing if states.scored is None else ~states.scored)[pick]
        how: dict[str, Any] = {"steps": 1} if k is None else {"steps": k + 1, "sampler": "ddpm"}
        how |= {} if block is None else {"block_length": block}
        name = f"{block} {k}"

        def write(known: Known = told, how: dict[str, Any] = how) -> Any:
            return run.model.write(known, Rng(0, torch.arange(len(known.at))), **how)

        out, tokens = write(), int((~told.at).sum())
        ways[name] = write
        facts[name] = {
            "block": block,
            "steps": k,
            "nfe": out.nfe,
            "sampler": how.get("sampler", "causal"),
            "tokens": tokens,
        }
    seconds = interleaved(ways, ROUNDS, f"{run.subject} writes")
    device = str(run.model.device.type)
    records = []
    for name, times in seconds.items():
        told = facts[name]
        contract = {
            **{key: value for key, value in told.items() if key != "tokens" and value is not None}, "batch": BATCH,
            "dtype": "float32", "ema": run.ema, "device": device, "threads": torch.get_num_threads(),
        }  # fmt: skip
        rates = told["tokens"] / times
        records.append(
            record(
                "tokens_per_second", float(np.median(rates)), on=on, subject=run.subject, unit="tokens/s", kind="estimate",
                n=len(times), train_seed=seed, run=run.name, contract=contract, spread=float(rates.std() / rates.mean()),
                load=load_average(),
            )
        )  # fmt: skip
    return records


def entropy(run: FlowRun, suite: Suite, on: str) -> dict[str, Any]:
    """Of the answers given their prompts, all alike, over the tokens that are scored."""
    encoded, nats, tokens = encode_suite(suite, run.tokenizer), 0.0, 0.0
    for prompt, law in suite.laws.items():
        p = np.array(list(law.values())) / sum(law.values())
        nats -= float((p * np.log(p)).sum())
        tokens += float((p * [len(encoded.answers[prompt][text]) for text in law]).sum())
    return record("entropy", nats / tokens, on=on, subject="law", unit="nats/token", kind="exact", contract={})


def head_cell(on: str, head: str, seed: int, runs: Path, command: list[str], kept: bool) -> list[dict[str, Any]]:
    """Of a suite, trained with the suite's own preset; of text, what benchmarks.heads keeps."""
    suite = suite_of(on)
    if suite is None:
        file = HEAD_CELLS / f"{TRUNK[on]}-{head}-{seed}.json"
        held = json.loads(file.read_text())["results"] if file.exists() else []
        tokens = {"on": f"{TRUNK[on]}, the trunk's tokens"}
        return [r | tokens for r in held if r["metric"] == "block_nll"]
    rank = {"head__rank": None} if head == "flow-map" else {}
    config = override(load_preset(on), head__name=head, seed=seed, **rank)

    def measure() -> list[dict[str, Any]]:
        folder = runs / on / f"head-{head}-{seed}"
        train(config, folder, build_heads)
        run, records = load_run(str(folder)), []
        size = run.block_size
        for steps in (1,) if run.head.exact else range(1, size + 1):
            if not run.head.exact:
                run.head.steps = steps  # type: ignore[assignment]
            value, error = bound(run, suite, ANSWERS, DRAWS, seed)
            contract = {"block": size, "steps": steps, "nfe": 1, "dtype": "float32", "ema": run.ema}
            sampled = {} if run.head.exact else {"draws": DRAWS, "stderr": error / size, "stderr_over": "monte-carlo"}
            records.append(
                record(
                    "block_nll", value / size, on=on, subject=head, unit="nats/token", train_seed=seed, contract=contract,
                    kind="exact" if run.head.exact else "bound", run=run.name, **sampled,
                )
            )  # fmt: skip
        return records

    inputs = {**to_dict(config), "law": suite.fingerprint, "scored": [ANSWERS, DRAWS]}
    return cell(RESULTS / f"{on}-head-{head}-{seed}.json", inputs, command, measure, kept)


def print_table(records: Sequence[dict[str, Any]], on: str) -> None:
    """Nats a token: means over seeds ± standard error, or of one seed ± Monte Carlo error."""
    mine = [r for r in records if r["on"] == on]
    lines = by_block(mine)
    steps = sorted({k for line in lines.values() for k in line if isinstance(k, int)})
    columns: list[int | str] = [*steps, ENDLESS]
    print(f"\n| {on} | " + " | ".join(f"K = {k}" for k in columns) + " |\n|" + "---|" * (len(columns) + 1))
    for line, points in lines.items():
        print(f"| {line} | " + " | ".join(shown(points[k]) if k in points else "" for k in columns) + " |")
    for name, level in levels(mine).items():
        print(f"\n{name}: {shown(level)}")
    for on_heads in dict.fromkeys(r["on"] for r in records):
        heads = [r for r in records if r["metric"] == "block_nll" and r["on"] == on_heads]
        for key in dict.fromkeys((r["subject"], r["contract"]["block"], r["contract"]["steps"]) for r in heads):
            seeds = [r for r in heads if (r["subject"], r["contract"]["block"], r["contract"]["steps"]) == key]
            print(f"{on_heads}, {key[0]}, K = {key[1]}, {key[2]} steps: {shown(seeds_mean(seeds))}")


def shown(r: dict[str, Any]) -> str:
    return f"{r['value']:.4f}" + (f" ± {r['stderr']:.4f}" if r.get("stderr") else "")


def draw(records: Sequence[dict[str, Any]], file: Path) -> None:
    pictures = [section.picture for section in surface_sections(list(records))]
    if pictures:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(standalone(beside(pictures, "likelihood by block length and steps")))


if __name__ == "__main__":
    main()
