"""What a token costs a flow language model by every estimator, on one trained model: bounds and estimates, their errors, their price.

    python -m benchmarks.likelihoods --seeds 0                     characters: denoisers, few-step maps, blocks, baselines
    python -m benchmarks.likelihoods --on poker                    six hands: the denoiser beside what was trained for the steps that are scored
    python -m benchmarks.likelihoods --on wikitext2 --presets flow-leap flow-mdlm --seeds 0
    python -m benchmarks.likelihoods --kept                        the tables of what is there

Runs are those of benchmarks.flow_text and benchmarks.flow, trained here where they are not. A cell scores held-out windows by

    vlb        at times of the least variance, fitted on training text, and at uniform times: the variance of a network call of each
    k-step     0 to 15 ancestral steps, one call more, on grids fitted on training text; of a model that was trained for them, on its own
    ode        the probability flow on a few windows, with what doubling its steps changes and the error of its trace
    sampler    the few-step sampler's own law, by importance sampling at 1, 4, 16 and 64 draws with the effective sample size; of models of
               blocks, whose blocks hold 512 numbers at most
    nelbo, exact        of masked diffusion and the autoregressive baseline

and says of each what it is, its Monte Carlo error given the text, the calls a window took and the CPU seconds it took in all. Cells lie
in benchmarks/results/likelihoods/.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.cells import cell, settings
from benchmarks.flow import PLAN as SUITES
from benchmarks.flow import suite_planned
from benchmarks.flow_runs import Planned
from benchmarks.flow_text import planned_on
from eval.flow import FlowRun, load_flow
from eval.flow_perplexity import Estimators, asked_as_trained, estimator_of, measure_flow
from eval.flow_records import Request
from eval.flow_text import scored_text
from eval.records import record, seeds_mean
from flowlm.likelihood import Clock, vlb
from flowlm.likelihood.importance import COUNTS, LARGEST
from flowlm.likelihood.terms import time_of

RESULTS = Path(__file__).parent / "results" / "likelihoods"
PRESETS = ("flow-bound", "flow-leap", "flow-block-flow", "flow-mdlm", "flow-bd3lm", "flow-ar")
PLAN = {
    "poker": ("flow-poker-denoiser", "flow-poker-k-step"),
    "characters": ("flow-flm", "flow-k-step", "flow-fmlm", *PRESETS), "wikitext2": PRESETS, "stdlib": PRESETS,
}  # fmt: skip
STEPS = (0, 1, 3, 7, 15)
FEW = (1, 2, 4)
"""Steps of the sampler whose law is scored."""
ALONG = 16
"""Of the flow, and twice as many."""
SIZES: dict[str, dict[str, int]] = {
    "vlb": {"windows": 512, "calls": 64, "fit": 512}, "k-step": {"windows": 512, "calls": 16, "fit": 512},
    "ode": {"windows": 8, "calls": 16, "fit": 512}, "sampler": {"windows": 16, "calls": 16, "fit": 32},
    "nelbo": {"windows": 512, "calls": 64, "fit": 512}, "exact": {"windows": 512, "calls": 16, "fit": 512},
}  # fmt: skip
"""Windows that each scores and that it is fitted on; network calls a window where they are chosen, of a model of blocks of all its lengths together."""
MORE = {"poker": 512}
"""Times as many calls, where there are few windows: the errors are then of a mean over all of them."""
FIT = 512
EVEN_CELLS = 512
ALONE = "uniform, each apart,"
"""Of times: what a training loss draws."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", nargs="+", default=["characters"], choices=list(PLAN))
    parser.add_argument("--presets", nargs="+", metavar="NAME", help="default: those the plan has")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/flow"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="variants: fields of the preset")
    parser.add_argument("--kept", action="store_true", help="what is there; trains nothing")
    args = parser.parse_args()
    command, variant = ["python", "-m", "benchmarks.likelihoods", *sys.argv[1:]], settings(args.set)
    found = []
    for on in args.on:
        plan = suite_planned if on in SUITES else planned_on
        for preset, seed in product(args.presets or PLAN[on], args.seeds):
            made = bounds_cell(on, plan(on, preset, seed, args.runs, variant, {}), command, args.kept)
            if made:
                print(f"{on} {preset} seed {seed}", flush=True)
            found += made
    if found:
        print_table(found)
        print_draws(found)


def bounds_cell(on: str, planned: Planned, command: list[str], kept: bool) -> list[dict[str, Any]]:
    def measure() -> list[dict[str, Any]]:
        folder, spent = planned.train()
        run = load_flow(str(folder))
        common = {
            "on": on, "subject": planned.subject, "train_seed": planned.seed, "training_cpu_seconds": round(spent, 1),
        }  # fmt: skip
        return [r | common for r in scores(run, MORE.get(on, 1))]

    inputs = {
        **planned.inputs(),
        "sizes": SIZES,
        "steps": [list(STEPS), list(FEW), ALONG],
        "fit": FIT,
        "more": MORE.get(on),
    }
    return cell(RESULTS / f"{on}-{planned.name}.json", inputs, command, measure, kept)


def scores(run: FlowRun, more: int = 1) -> Iterator[dict[str, Any]]:
    """Of every estimator that the model has, nats a token alone. more: times the calls of bounds. cpu_seconds: of one law by one estimator, the reading of the text
    and what is fitted on it included."""
    own, lengths = estimator_of(run, None), run.model.config.block_lengths
    trained = [int(n) for n in getattr(run.model.config, "grids", None) or {}]
    for name in ("vlb", "k-step", "ode", "sampler") if own == "vlb" else (own,):
        by_steps = {"k-step": trained or STEPS, "ode": (ALONG,), "sampler": FEW}.get(name, (1,))
        for block, steps in product(blocks_of(run, name), by_steps):
            start, calls = time.process_time(), max(6, SIZES[name]["calls"] // len(lengths or [None]))
            calls *= more if name in ("vlb", "k-step", "nelbo") else 1
            asked = SimpleNamespace(
                estimator=name, steps=(steps,), calls=calls, draws=max(COUNTS), sampler="pushforward", seed=0, data=None,
                text_column="text", split="validation", windows=SIZES[name]["windows"], fit=SIZES[name]["fit"], length=None, certify=False,
                from_zero=False, blocks=None if block is None else [block],
            )  # fmt: skip
            records, _ = measure_flow(run, asked)
            spent = round(time.process_time() - start, 1)
            told = {"cpu_seconds": spent, "windows": SIZES[name]["windows"]}
            yield from (
                r | told for r in records if r["metric"] == "nll"
            )  # of a suite, of all answers that are not more
    if own == "vlb" and not lengths:
        yield from variances(run, more)


def blocks_of(run: FlowRun, name: str) -> Sequence[int | None]:
    lengths = run.model.config.block_lengths
    if name == "sampler":
        return [n for n in lengths or () if n * run.model.map.codebook.state_size <= LARGEST]
    if not lengths:
        return [None]
    return [max(lengths)] if name == "ode" else lengths


def variances(run: FlowRun, more: int = 1) -> Iterator[dict[str, Any]]:
    """Of the bound, times the calls it took: at fitted times; at uniform ones, everything else alike; and at uniform ones of which none knows of
    another's, in the place of even times."""
    asked = Request("vlb", calls=32 * more)
    text = scored_text(run, None, "text", "validation", 128, FIT)
    estimator, model = Estimators(run, text.training, asked), asked_as_trained(run)
    fitted = estimator.clock
    uniform = uniform_in_time(run, fitted)
    for name, clock in (("fitted", fitted), ("uniform", uniform), (ALONE, uniform)):
        rng = estimator._addressed(torch.arange(text.states.size), 0)
        score = vlb(model, text.states, rng, clock, asked.calls, trusted=True)
        if name == ALONE:
            score = replace(score, parts=tuple(replace(part, shared=False) for part in score.parts))
        yield record(
            "variance", score.monte_carlo**2 * score.nfe * text.states.size, on=text.on, subject=run.subject, kind="estimate",
            unit="(nats/token)², of a network call", n=text.states.size,
            contract={"estimator": "vlb", "times": name, "calls": score.nfe},
        )  # fmt: skip


def uniform_in_time(run: FlowRun, fitted: Clock) -> Clock:
    """A clock to the same end whose cells are alike in t."""
    path = run.model.map.path
    last = float(time_of(path, torch.tensor(fitted.end, dtype=torch.float64)))
    times = torch.linspace(1.0, last, EVEN_CELLS + 1, dtype=torch.float64)[1:-1]
    inner = path.snr(times) / path.noise_scale**2
    edges = torch.cat([torch.zeros(1, dtype=torch.float64), inner, torch.tensor([fitted.end], dtype=torch.float64)])
    return Clock(edges, torch.full((len(edges) - 1,), 1 / (len(edges) - 1), dtype=torch.float64), fitted.reading)


def print_table(records: Sequence[dict[str, Any]]) -> None:
    """Means over seeds; errors of one seed are the largest of any. Laws scored on other windows do not compare to the last digit."""
    print(
        "| on | model | estimator | is | nats/token | windows | data error | Monte Carlo error | calls a window | CPU s |"
    )
    print("|---" * 10 + "|")
    nll = [r for r in records if r["metric"] == "nll"]
    for key in dict.fromkeys(map(_law, nll)):
        rows = [r for r in nll if _law(r) == key]
        on, subject, name, steps, block = key
        mean = seeds_mean(rows)
        law = (
            name
            + (f", {steps} steps" if steps is not None and name != "vlb" else "")
            + (f", blocks of {block}" if block else "")
        )
        error = f" ± {mean['stderr']:.3f}" if len(rows) > 1 else ""
        data, noise = (
            max((r[k] for r in rows if r.get(k) is not None), default=None) for k in ("stderr", "monte_carlo")
        )
        errors = " | ".join("" if x is None else f"{x:.4f}" for x in (data, noise))
        calls, spent = rows[0]["contract"]["calls"], sum(r["cpu_seconds"] for r in rows) / len(rows)
        print(
            f"| {on} | {subject} | {law} | {rows[0]['kind']} | {mean['value']:.3f}{error} | {rows[0]['windows']} | {errors} | "
            f"{calls:g} | {spent:.0f} |"
        )
    by = {
        (r["on"], r["subject"], r["train_seed"], r["contract"]["times"]): r
        for r in records
        if r["metric"] == "variance"
    }
    for on, subject, name in dict.fromkeys((*key[:2], key[3]) for key in by if key[3] != "fitted"):
        seeds = sorted({key[2] for key in by if key[:2] == (on, subject)})
        ratios = [by[on, subject, s, name]["value"] / by[on, subject, s, "fitted"]["value"] for s in seeds]
        told = ", ".join(f"{ratio:.1f}" for ratio in ratios)
        print(
            f"{on}, {subject}: at {name} times the bound's variance of a network call is {told} × that at fitted ones, seed by seed"
        )


def print_draws(records: Sequence[dict[str, Any]]) -> None:
    """The bound on the sampler's law by draws of its noise."""
    drawn = [r for r in records if r["metric"] == "nll" and r["contract"]["estimator"] == "sampler"]
    if not drawn:
        return
    print("| on | model | sampler | " + " | ".join(f"{n} draws" for n in COUNTS) + " | effective sample size |")
    print("|---" * (len(COUNTS) + 4) + "|")
    for r in drawn:
        told = [f"{r['details'][f'bound_at_{n}']:.3f}" for n in COUNTS]
        how = f"{r['contract']['steps']} steps, blocks of {r['contract']['block']}, seed {r['train_seed']}"
        print(
            f"| {r['on']} | {r['subject']} | {how} | {' | '.join(told)} | {r['details']['effective_sample_size']:.1f} |"
        )


def _law(r: dict[str, Any]) -> tuple[Any, ...]:
    contract = r["contract"]
    return r["on"], r["subject"], contract["estimator"], contract.get("steps"), contract.get("block")


if __name__ == "__main__":
    main()
