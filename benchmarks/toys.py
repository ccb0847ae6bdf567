"""Every objective on two densities in the plane known in closed form: what one step reaches, and what 64 do.

    python -m benchmarks.toys --costs             CPU seconds of a step of each, in turns; committed
    python -m benchmarks.toys [--laws ...] [--objectives ...] [--seeds 0 1 2] [--json FILE] [--plot FILE]

All train the same network with the same optimiser for equal compute: --seconds of one core, from the measured cost of a step of
each. Flow matching by 64 Euler steps is the reference, by one step the counterexample. Two-time maps are sampled by
pushforward, consistency models by restart, one-step generators in one step (toy_training.py).

    histogram_kl   KL(law ‖ samples), nats, 64 × 64 cells over [−1.6, 1.6]², the law's cells exact, the samples'
                   mixed with 0.1% of the uniform law; n = 50,000
    coverage       share of the squares or modes that hold at least half of their mass
    validity       share of the samples on the support (a square; within three deviations of a mode); the table shows
                   what is off it
    w2             exact 2-Wasserstein distance of 2,000 samples to 2,000 of the law (POT), a field of histogram_kl

`law` stands for samples of the law itself: what any of these numbers would be for a perfect model.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cells import cell
from benchmarks.costs import seconds_of_a_step
from benchmarks.toy_training import (
    COSTS,
    NETWORK,
    NOISE,
    OPTIMISER,
    RECIPES,
    REFERENCE,
    SAMPLES,
    Drawn,
    counts_of,
    draw,
    measure_costs,
    train,
)  # fmt: skip
from eval.records import read_records, record, seeds_mean, write_records
from flowmap.objectives import OBJECTIVES
from imm.toys import LAWS, coverage, histogram_kl, off_support

RESULTS = Path(__file__).parent / "results" / "toys"
POINTS = Path("runs/toys")  # samples of cells measured here, for the picture; not committed
TRANSPORTED, DATA = 2000, 2**32 - 2
"""Samples that W₂ is taken of, and the number of a batch that no training reaches, which it is taken to."""
EXACT = "law"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", nargs="+", default=list(LAWS), choices=LAWS)
    parser.add_argument("--objectives", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=120.0, help="of training on one core, for each cell")
    parser.add_argument("--costs", action="store_true", help="measure the cost of a step of each objective instead")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--kept", action="store_true", help="show the cells that are there; train nothing")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="draw one-step samples of the first seed there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    command = ["python", "-m", "benchmarks.toys", *sys.argv[1:]]
    if args.costs:
        return measure_costs(args.laws[0], args.objectives, command)
    records = []
    for law in args.laws:
        for seed in args.seeds:
            for name in (EXACT, *args.objectives):
                records += one_cell(law, name, seed, args, command)
    print(table(records, args))
    if args.json:
        write_records(args.json, command, records)
    if args.plot:
        plot(args)


def one_cell(law: str, name: str, seed: int, args: argparse.Namespace, command: list[str]) -> list[dict[str, Any]]:
    file = args.results / f"{law}-{name}-{seed}.json"
    if args.kept:
        return read_records(file) if file.exists() else []
    inputs: dict[str, Any] = {"law": law, "objective": name, "seed": seed, "samples": SAMPLES}
    if name != EXACT:
        recipe, sampler = RECIPES[name], OBJECTIVES[name].sampler
        steps = round(args.seconds / seconds_of_a_step(COSTS, "python -m benchmarks.toys --costs")[name])
        inputs |= {"steps": steps, "batch": recipe.batch, "options": recipe.options(steps), **OPTIMISER, **NETWORK}
        if (version := OBJECTIVES[name].version) is not None:
            inputs["version"] = version
        inputs |= {"time_scale": recipe.time_scale, "sampler": sampler, "counts": list(counts_of(name))}

    def measure() -> list[dict[str, Any]]:
        start = time.process_time()
        if name == EXACT:
            x = LAWS[law].sample(SAMPLES, Drawn(seed, batch=NOISE))
            return _records(law, name, seed, x, {"sampler": EXACT, "dtype": "float32"})
        model = train(law, name, seed, steps)
        contract: dict[str, Any] = {
            "sampler": sampler, "dtype": "float32", "ema": None, "batch": recipe.batch, "train_steps": steps,
            "options": inputs["options"], "train_processor_seconds": round(time.process_time() - start, 1),
        }  # fmt: skip
        found = []
        for count in counts_of(name):
            x, nfe = draw(model, sampler, count, seed)
            if count in (1, REFERENCE):
                keep_points(x, law, name, count, seed)
            found += _records(law, name, seed, x, {**contract, "steps": count, "nfe": nfe})
        print(f"{law} {name} {seed}: one step {found[0]['value']:.3f}", flush=True)
        return found

    return cell(file, inputs, command, measure)


def _records(law: str, name: str, seed: int, x: Tensor, contract: dict[str, Any]) -> list[dict[str, Any]]:
    here: dict[str, Any] = {"on": law, "subject": name, "kind": "estimate", "n": len(x)}
    here |= {"train_seed": seed, "sample_seed": seed, "contract": contract}
    truth = LAWS[law]
    data = truth.sample(TRANSPORTED, Drawn(seed, batch=DATA))
    w2: dict[str, Any] = {"w2": transport(x[:TRANSPORTED], data), "w2_n": TRANSPORTED}
    return [
        record("histogram_kl", histogram_kl(truth.cells(), x), unit="nats", **here, **w2),
        record("coverage", coverage(truth, x), unit="fraction", **here),
        record("validity", 1 - off_support(truth, x), unit="fraction", **here),
    ]


def transport(x: Tensor, y: Tensor) -> float:
    """Exact W₂ of two equally weighted sets of points."""
    import ot

    cost = torch.cdist(x.double(), y.double()).square().numpy()
    return float(ot.emd2([], [], cost, numItermax=10**7)) ** 0.5


Key = tuple[str, str, int | None]
"""(law, subject, steps of the sampler; None for the law's own samples)."""


def table(records: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """Markdown, a table a law; mean over the seeds ± its standard error, and × the reference's mean where both were trained for as
    long, within a half."""
    rows: dict[Key, dict[str, list[dict[str, Any]]]] = {}
    for r in records:
        place = rows.setdefault((r["on"], r["subject"], r["contract"].get("steps")), {})
        place.setdefault(r["metric"], []).append(r)
        if "w2" in r:
            place.setdefault("w2", []).append({"value": r["w2"]})
    lines = []
    for law in args.laws:
        reference = rows.get((law, "flow-matching", REFERENCE), {}).get("histogram_kl", [])
        lines += [
            f"\n{law}\n",
            "| objective | seeds | training, CPU s | steps | KL, nats | of the reference | coverage | off support | W₂ |",
            "|---" * 9 + "|",
        ]
        for (on, name, count), found in rows.items():
            if on == law:
                kl = found["histogram_kl"]
                texts = [show(found[metric]) for metric in ("histogram_kl", "coverage", "validity", "w2")]
                texts[2] = show(found["validity"], complement=True)
                own, whole = trained(kl), trained(reference)
                alike = own is None or (whole is not None and 2 / 3 < own / whole < 1.5)
                of = f"{seeds_mean(kl)['value'] / seeds_mean(reference)['value']:.2f}" if reference and alike else ""
                spent = "" if own is None else f"{own:.0f}"
                lines.append(
                    f"| {name} | {len(kl)} | {spent} | {count or ''} | {texts[0]} | {of} | {' | '.join(texts[1:])} |"
                )
    return "\n".join(lines)


def trained(records: list[dict[str, Any]]) -> float | None:
    """CPU seconds of a training, a mean; None of what is not trained."""
    spent = [r["contract"].get("train_processor_seconds") for r in records]
    return None if not spent or None in spent else sum(spent) / len(spent)


def show(records: list[dict[str, Any]], complement: bool = False) -> str:
    mean = seeds_mean(records)
    value = 1 - mean["value"] if complement else mean["value"]
    return f"{value:.3f} ± {mean['stderr']:.3f}" if "stderr" in mean else f"{value:.3f}"


def keep_points(x: Tensor, law: str, name: str, count: int, seed: int) -> None:
    POINTS.mkdir(parents=True, exist_ok=True)
    np.save(POINTS / f"{law}-{name}-{seed}-{count}.npy", x[:TRANSPORTED].numpy())


def plot(args: argparse.Namespace) -> None:
    """Samples of the first seed: the law, the reference, then every objective in one step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    seed, panels = args.seeds[0], [(EXACT, 0), ("flow-matching", REFERENCE), *((name, 1) for name in args.objectives)]
    columns = -(-len(panels) // 2)
    figure, axes = pyplot.subplots(2 * len(args.laws), columns, figsize=(1.1 * columns, 2.6 * len(args.laws)))
    for ax in axes.flat:
        ax.axis("off")
    for i, law in enumerate(args.laws):
        for j, (name, count) in enumerate(panels):
            file = POINTS / f"{law}-{name}-{seed}-{count}.npy"
            if name == EXACT:
                x = LAWS[law].sample(TRANSPORTED, Drawn(seed, batch=DATA)).numpy()
            elif file.exists():
                x = np.load(file)
            else:
                print(f"not in the picture, since its cell was measured elsewhere: {law} {name}")
                continue
            ax = axes[2 * i + j // columns, j % columns]
            ax.plot(*x.T, ",", color="k", alpha=1, antialiased=False)
            title = name if count == 0 else f"{name}, {count} step{'s' * (count > 1)}"
            ax.set_title(title.replace("-", " ").replace(", ", "\n"), fontsize=5)
            ax.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.94, 0.05, 0.2)
    args.plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.plot, dpi=100)
    print(args.plot)


if __name__ == "__main__":
    main()
