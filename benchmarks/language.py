"""Does refinement help language benchmarks? Scores of flow language models and their baselines by network calls, and the slope.

    python -m benchmarks.language --seeds 0 [--tasks local_blimp local_lambada_openai] [--limit 8]

The runs are those of benchmarks.flow_text, one network, one text and one budget of tokens, trained if they are not there. At 1, 2, 4, 8 and
16 calls (of a model of blocks, of each of its blocks of 16): BLiMP, which of two sentences costs less under the bound of as many ancestral steps, the read of the tokens being the
last; LAMBADA, whether the last word is what the model writes at temperature 0. What does not depend on a number of steps
(masked diffusion's NELBO, by as many calls of the network as the longest of the others, an autoregressive model's exact score) is scored once. Suites: validity, from the cells of benchmarks.flow.
Every bound is a mean of as many draws. A doubling of the calls adds the slope; its 95% interval is over documents, the same at
every number of calls. Cells lie in benchmarks/results/language/; `leaplm report` draws them.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cells import cell
from benchmarks.flow import RESULTS as SUITES
from benchmarks.flow_runs import Planned
from benchmarks.flow_text import planned_on
from eval.baseline_likelihood import ESTIMATOR
from eval.flow import load_flow
from eval.records import read_records, record
from eval.refinement import Z, paired_slope, slope_of_means, slope_record, way

RESULTS = Path(__file__).parent / "results" / "language"
PRESETS = ("flow-ar", "flow-mdlm", "flow-leap", "flow-block-flow")
TASKS = {"local_blimp": "bound", "local_lambada_openai": "written"}
"""What a task's accuracy looks at: what sentences cost, or what is written."""
CALLS = (1, 2, 4, 8, 16)
LIMITS = {"local_blimp": 8, "local_lambada_openai": 400}
"""Documents of each (sub)task."""
DRAWS, COMMON = 8, 2
"""Of a bound's noise, whatever the number of calls, or the noise of what is scored would grow with them; tokens by which the two
sentences of a pair have their noise in common."""
BLOCK = 16
"""Tokens, where a model writes in blocks: calls are then of each."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--on", default="characters", help="the text of benchmarks.flow_text that models are trained on"
    )
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--limit", type=int, help=f"documents of each (sub)task, default {LIMITS}")
    parser.add_argument("--runs", type=Path, default=Path("runs/flow"))
    parser.add_argument("--kept", action="store_true", help="what is there; measures nothing")
    args = parser.parse_args()
    command = ["python", "-m", "benchmarks.language", *sys.argv[1:]]
    found = []
    for preset, task, seed in product(args.presets, args.tasks, args.seeds):
        planned = planned_on(args.on, preset, seed, args.runs, {}, {})
        if made := language_cell(args.on, planned, task, args.limit or LIMITS[task], command, args.kept):
            print(f"{task} {planned.name}", flush=True)
        found += made
    found += suite_slopes([r for file in sorted(SUITES.glob("*.json")) for r in read_records(file)])
    print_table(found)


def language_cell(
    on: str, planned: Planned, task: str, limit: int, command: list[str], kept: bool
) -> list[dict[str, Any]]:
    def measure() -> list[dict[str, Any]]:
        folder, _ = planned.train()
        by_calls = {nfe: accuracy(str(folder), task, limit, nfe) for nfe in calls_of(str(folder), TASKS[task])}
        common: dict[str, Any] = {
            "on": task, "subject": planned.subject, "train_seed": planned.seed, "unit": "score", "score": "acc",
            "stderr_over": "documents",
        }  # fmt: skip
        records = [
            record("harness_score", float(values.mean()), stderr=float(values.std(ddof=1) / len(values) ** 0.5), kind=kind,
                   n=len(values), contract={**contract, "nfe": nfe, "trained_on": on, "limit": limit}, **common)
            for nfe, (values, kind, contract) in by_calls.items()
        ]  # fmt: skip
        if len(by_calls) > 1:
            each = np.stack([values for values, *_ in by_calls.values()], 1)
            records.append(slope_record(records[0], list(by_calls), *paired_slope(list(by_calls), each)))
        return records

    inputs = {
        **planned.inputs(),
        "task": task,
        "limit": limit,
        "calls": list(CALLS),
        "draws": [DRAWS, COMMON],
        "block": BLOCK,
    }
    return cell(RESULTS / f"{on}-{task}-{planned.name}.json", inputs, command, measure, kept)


def calls_of(folder: str, looks_at: str) -> tuple[int | None, ...]:
    """None: the score knows no number of calls."""
    model = load_flow(folder).model
    own = ESTIMATOR.get(model.config.model_type)
    if own == "exact" or (own and looks_at == "bound"):
        return (None,)
    return CALLS


def accuracy(folder: str, task: str, limit: int, nfe: int | None) -> tuple[np.ndarray, str, dict[str, Any]]:
    """(documents,) of 0 and 1, the score's kind, and its contract. A bound of n − 1 ancestral steps takes n calls; the first
    reads the tokens off pure noise."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from eval.harness.command import TASKS as FOLDER
    from eval.harness.flow import KINDS, LeapFlow

    baseline = nfe is None or TASKS[task] == "written"
    estimator = None if baseline else "k-step"
    block = BLOCK if load_flow(folder).model.config.block_lengths else None
    calls = DRAWS * (nfe or max(CALLS))
    lm = LeapFlow(folder, steps=nfe, estimator=estimator, calls=calls, common=COMMON, block=block, batch_size=64)
    done = simple_evaluate(
        lm, tasks=[task], task_manager=TaskManager(include_path=str(FOLDER)), limit=limit, bootstrap_iters=0, log_samples=True
    )  # fmt: skip
    values = np.array(
        [sample["acc"] for name in sorted(done["samples"]) for sample in done["samples"][name]], dtype=float
    )
    written = TASKS[task] == "written"
    contract = {"sampler": lm.sampling.sampler} if written else {"estimator": lm.estimator}
    return (
        values,
        "estimate" if written else KINDS[lm.estimator],
        contract | {"steps": nfe, "block": block, "dtype": "float32"},
    )


def suite_slopes(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of validities by calls, each measured apart, with their slopes."""
    valid = [r for r in records if r["metric"] == "validity"]
    found: list[dict[str, Any]] = []
    for key in dict.fromkeys((r["on"], way(r), r["train_seed"]) for r in valid):
        own = sorted(
            (r for r in valid if (r["on"], way(r), r["train_seed"]) == key), key=lambda r: r["contract"]["nfe"]
        )
        found += own
        calls = [r["contract"]["nfe"] for r in own]
        if len(set(calls)) > 1:
            slope = slope_of_means(calls, [r["value"] for r in own], [r["stderr"] for r in own])
            found.append(slope_record(own[0], calls, *slope))
    return found


def print_table(records: Sequence[dict[str, Any]]) -> None:
    """A row a seed: the interval is over documents or samples, not over trainings."""
    print("| on | model | seed | " + " | ".join(f"nfe {n}" for n in CALLS) + " | a doubling adds | 95% interval |")
    print("|---" * (5 + len(CALLS)) + "|")
    for on, name, seed in dict.fromkeys((r["on"], way(r), r["train_seed"]) for r in records):
        own = [r for r in records if (r["on"], way(r), r["train_seed"]) == (on, name, seed)]
        scores = {
            r["contract"].get("nfe"): f"{r['value']:.3f} ± {r.get('stderr', 0):.3f}"
            for r in own
            if r["metric"] != "slope"
        }
        told = [scores.get(n, "") for n in CALLS]
        if None in scores:
            told[-1] = scores[None] + " (whatever the calls)"
        slope = next((r for r in own if r["metric"] == "slope"), None)
        added = ["", ""]
        if slope is not None:
            value, error = slope["value"], slope.get("stderr", 0.0)
            added = [f"{value:+.4f}", f"{value - Z * error:+.4f} to {value + Z * error:+.4f}"]
        print(f"| {on} | {name} | {seed} | " + " | ".join([*told, *added]) + " |")


if __name__ == "__main__":
    main()
