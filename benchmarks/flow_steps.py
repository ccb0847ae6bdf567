"""The flow-map head by refinement steps: validity and a bound on the block's NLL, from one step to K; with a plot.

    python -m benchmarks.flow_steps                     every cell that is not there yet, then table and plot
    python -m benchmarks.flow_steps --on skip-64 --seeds 0 --set head.options.diagonal=0.5

A cell trains (or finds) RUNS/ON/flow-map-SEED with the suite's own preset, then draws and scores at every number of steps.

    validity     as `leaplm probe`; answers of one block
    block_nll    E_x −log q̂(x), nats a block: x of the suite's law, all of it or --answers draws; q̂ a mean over --draws of
                 the noise, so that the expectation of what is printed is above the true value (a bound). The more
                 steps, the more of p(· | z) lies on one block: only with many draws to a block does it say anything

Cells and the plot lie in benchmarks/results/flow-steps/.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cells import cell, cell_name, settings
from eval.loading import LoadedRun, load_run
from eval.records import record, seeds_mean
from eval.validity.probe import probe, prompt_contexts
from eval.validity.suites import Suite, load_suite
from flowmap.rng import Rng
from training.config import load_preset, override, to_dict
from training.data.cases import encode_suite
from training.loop import train
from training.mtp_task import build

RESULTS = Path(__file__).parent / "results" / "flow-steps"
SUITES = ("poker", "skip-64", "brackets-8")
NUM = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", nargs="+", default=SUITES, choices=SUITES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--draws", type=int, default=4096, help="of the noise, for every block that is scored")
    parser.add_argument("--answers", type=int, default=256, help="blocks scored, where a suite has more")
    parser.add_argument("--runs", type=Path, default=Path("runs/heads"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="variants, as in benchmarks.heads")
    parser.add_argument(
        "--kept", action="store_true", help="table and plot of the cells that are there; trains nothing"
    )
    args = parser.parse_args()
    command, variant = ["python", "-m", "benchmarks.flow_steps", *sys.argv[1:]], settings(args.set)
    found = []
    for on, seed in product(args.on, args.seeds):
        found += (made := steps_cell(on, seed, (args.answers, args.draws), args.runs, command, variant, args.kept))
        if made:
            print(f"{on} seed {seed}", flush=True)
    if found:
        print_table(found)
        plot(found, RESULTS / ("-".join(["steps", *args.set]).replace("/", "-") + ".svg"))


def steps_cell(
    on: str, seed: int, size: tuple[int, int], runs: Path, command: list[str], variant: dict[str, Any], kept: bool
) -> list[dict[str, Any]]:
    config = override(load_preset(on), head__name="flow-map", head__rank=None, seed=seed, **variant)
    suite, name = load_suite(on), cell_name("flow-map", seed, variant)

    def measure() -> list[dict[str, Any]]:
        folder = runs / on / name
        train(config, folder, build)
        run, records = load_run(str(folder)), []
        for steps in range(1, config.head.block_size + 1):
            run.head.steps = steps  # type: ignore[assignment]
            made = probe(run, suite, num=NUM, seed=seed).records
            records += [r for r in made if r["metric"] == "validity" and r["subject"] == "flow-map"]
            value, error = bound(run, suite, *size, seed)
            contract = {"block": run.block_size, "steps": steps, "draws": size[1], "dtype": "float32", "ema": run.ema}
            records.append(
                record(
                    "block_nll", value, stderr=error, stderr_over="draws", unit="nats/block", kind="bound", on=on,
                    subject="flow-map", train_seed=seed, sample_seed=seed, contract=contract,
                )
            )  # fmt: skip
        return records

    inputs = {**to_dict(config), "law": suite.fingerprint, "num": NUM, "scored": list(size)}
    return cell(RESULTS / f"{on}-{name}.json", inputs, command, measure, kept)


@torch.no_grad()
def bound(run: LoadedRun, suite: Suite, answers: int, draws: int, seed: int) -> tuple[float, float]:
    """(nats a block, its Monte Carlo error), prompts alike; without noise of a head that is exact."""
    encoded = encode_suite(suite, run.tokenizer)
    rows = [(i, prompt, text) for i, prompt in enumerate(suite.prompts) for text in suite.laws[prompt]]
    weight = np.array([suite.laws[prompt][text] for _, prompt, text in rows])
    weight /= weight.sum()
    sampled = len(rows) > answers
    if sampled:
        picks = np.random.default_rng(seed).choice(len(rows), answers, p=weight)
        rows, weight = [rows[i] for i in picks], np.full(answers, 1 / answers)
    tokens = torch.tensor([encoded.answers[prompt][text] for _, prompt, text in rows])
    contexts = prompt_contexts(run, [encoded.starts[prompt] for prompt in suite.prompts])
    nll, errors = np.zeros(len(rows)), np.zeros(len(rows))
    for part in torch.arange(len(rows)).split(max(1, 2**18 // draws)):
        context = contexts([rows[i][0] for i in part.tolist()])
        if run.head.exact:
            nll[part] = -run.head.log_prob(context, tokens[part]).sum(1).numpy()  # type: ignore[operator]
            continue
        found = run.head.estimate_prefixes(context, tokens[part], Rng(seed, part), draws)  # type: ignore[operator]
        nll[part], errors[part] = -found.log_prob[:, -1].numpy(), found.stderr[:, -1].numpy()
    spread = nll.std(ddof=1) / len(rows) ** 0.5 if sampled else np.sqrt((weight**2 * errors**2).sum())
    return float((weight * nll).sum()), float(spread)


def print_table(records: Sequence[dict[str, Any]]) -> None:
    """Means over seeds ± standard error; a mark where a step is worse than the one before by more than two of them."""
    print("| suite | steps | validity | bound on the block's NLL |\n|---|---|---|---|")
    for on in dict.fromkeys(r["on"] for r in records):
        curves = {metric: curve(records, on, metric) for metric in ("validity", "block_nll")}
        for n in range(len(curves["validity"])):
            cells = [shown(curves["validity"], n, better=1), shown(curves["block_nll"], n, better=-1)]
            print(f"| {on} | {n + 1} | " + " | ".join(cells) + " |")


def curve(records: Sequence[dict[str, Any]], on: str, metric: str) -> list[dict[str, Any]]:
    """By steps, from one."""
    chosen = [r for r in records if (r["on"], r["metric"]) == (on, metric)]
    steps = sorted({r["contract"]["steps"] for r in chosen})
    return [seeds_mean([r for r in chosen if r["contract"]["steps"] == n]) for n in steps]


def shown(means: Sequence[dict[str, Any]], n: int, better: int) -> str:
    mark = ""
    for before, here in pairwise(means[: n + 1][-2:]):
        error = (before.get("stderr", 0.0) ** 2 + here.get("stderr", 0.0) ** 2) ** 0.5
        mark = " (worse)" if better * (here["value"] - before["value"]) < -2 * error else ""
    return f"{means[n]['value']:.4f} ± {means[n].get('stderr', 0.0):.4f}{mark}"


def plot(records: Sequence[dict[str, Any]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    for axis, metric, title in zip(
        axes, ("validity", "block_nll"), ("validity", "bound on block NLL, nats"), strict=True
    ):
        for on in dict.fromkeys(r["on"] for r in records):
            means = curve(records, on, metric)
            errors = [2 * m.get("stderr", 0.0) for m in means]
            axis.errorbar(range(1, len(means) + 1), [m["value"] for m in means], errors, label=on, marker="o")
        axis.set(xlabel="refinement steps", title=title)
    axes[0].legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


if __name__ == "__main__":
    main()
