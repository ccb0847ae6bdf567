"""Gradient estimators for discrete draws against the exact gradient: bias, variance, cosine.

    python -m benchmarks.estimators [--num-samples 8] [--repeats 1000] [--json FILE] [--plot FILE]

Each estimate may evaluate f --num-samples times (REBAR and RELAX, which also evaluate it at a relaxed draw, make
half as many draws). f has mean 1 and variance 1 under the law it is taken over, so that cells compare:

    linear      a random weight a category            network   a random two-layer tanh network
    quadratic   a random form of all variables        step      the same with a step for tanh, score functions only

bias: the norm of the mean error over the repeats; its standard error is the norm an unbiased estimator shows.
variance: of one estimate, summed over components. cosine: of one estimate to the exact gradient, averaged.
"""

import argparse
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.records import record, write_records
from flowmap.estimators import ESTIMATORS, ControlNetwork, Estimator, Exact, Rebar
from flowmap.estimators.base import Function
from flowmap.rng import Rng

PLOT = Path(__file__).parent / "results" / "estimators" / "estimators.svg"
SIZES = tuple(product((2, 8, 64), (1, 3)))
FUNCTIONS = ("linear", "quadratic", "network", "step")
EXACT = Exact(limit=64**3, chunk=2**14)
FIT_BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-samples", type=int, default=8, help="evaluations of f an estimate")
    parser.add_argument("--repeats", type=int, default=1000, help="estimates of each gradient")
    parser.add_argument("--fit-steps", type=int, default=100, help="of the control variates of REBAR and RELAX")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, default=PLOT)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for V, L in SIZES:
        cells = [cell for kind in FUNCTIONS for cell in measure(kind, V, L, args)]
        print(table(cells, V, L), flush=True)
        rows += cells
    if args.json:
        command = ["python", "-m", "benchmarks.estimators", *sys.argv[1:]]
        write_records(args.json, command, [r for row in rows for r in records(row, args)])
    plot(rows, args)


def measure(kind: str, V: int, L: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    logits, f = problem(kind, V, L, args.seed)
    exact = EXACT.estimate(logits, f).gradient
    rows = []
    for name in ESTIMATORS:
        estimator = prepare(name, kind, logits, f, args)
        if estimator is None:
            continue
        draws = args.num_samples // 2 if name in ("rebar", "relax") and kind != "step" else args.num_samples
        batch = logits.expand(args.repeats, L, V)
        estimate = estimator.estimate(batch, f, draws, Rng(args.seed))
        rows.append(
            {"name": name, "f": kind, "V": V, "L": L, "evaluations": estimate.num_evaluations}
            | statistics(estimate.gradient.flatten(1), exact.flatten())
        )
    return rows


def problem(kind: str, V: int, L: int, seed: int) -> tuple[Tensor, Function]:
    """Logits ~ N(0, 1), (L, V), and f of mean and variance 1 under their law."""
    rng = Rng(seed)
    logits = rng.normal("logits", L, V, dtype=torch.float64)
    w, A, outer = (
        rng.normal(name, *shape, dtype=torch.float64)
        for name, shape in (("w", (L * V,)), ("A", (L * V, 16)), ("outer", (16,)))
    )
    raw: dict[str, Function] = {
        "linear": lambda x: x.flatten(-2) @ w,
        "quadratic": lambda x: (x.flatten(-2) @ A).square() @ outer,
        "network": lambda x: torch.tanh(x.flatten(-2) @ A) @ outer,
        "step": lambda x: ((x.flatten(-2) @ A) > 0).to(x) @ outer,
    }
    f = raw[kind]
    mean = EXACT.estimate(logits, f).value
    deviation = EXACT.estimate(logits, lambda x: (f(x) - mean).square()).value.sqrt()
    return logits, lambda x: 1 + (f(x) - mean) / deviation


def prepare(name: str, kind: str, logits: Tensor, f: Function, args: argparse.Namespace) -> Estimator | None:
    """The estimator, its control variate fitted; None where it does not apply."""
    L, V = logits.shape
    if name == "exact" or name in (("disarm", "arms") if V > 2 else ("stick-arms",)):  # sticks are arms at V = 2
        return None
    control = (ControlNetwork(L, V, Rng(args.seed)), None if kind == "step" else Rebar())
    estimator = ESTIMATORS[name](*control) if name == "relax" else ESTIMATORS[name]()
    if estimator.needs_gradient_of_f and kind == "step":
        return None
    if name in ("rebar", "relax"):
        estimator.fit(logits.expand(FIT_BATCH, L, V), f, 1, Rng(args.seed), steps=args.fit_steps, learning_rate=0.03)
    return estimator


def statistics(estimates: Tensor, exact: Tensor) -> dict[str, float]:
    """estimates: (repeats, components). exact: (components,)."""
    num = len(estimates)
    square = (estimates - estimates.mean(0)).square().sum(1) * num / (num - 1)
    cosine = torch.cosine_similarity(estimates, exact, dim=1)
    values = {
        "bias": (estimates.mean(0) - exact).norm(),
        "bias_error": (square.mean() / num).sqrt(),
        "variance": square.mean(),
        "variance_error": square.std() / num**0.5,
        "cosine": cosine.mean(),
        "cosine_error": cosine.std() / num**0.5,
        "norm": exact.norm(),
    }
    return {key: float(value) for key, value in values.items()}


def records(row: dict[str, Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    units = {"bias": "f/nat", "variance": "(f/nat)^2", "cosine": "1"}
    return [
        record(
            metric,
            row[metric],
            stderr=row[f"{metric}_error"],
            stderr_over="monte-carlo",
            n=args.repeats,
            on=f"discrete-draws-{row['f']}-v{row['V']}-l{row['L']}",
            subject=row["name"],
            unit=unit,
            kind="estimate",
            sample_seed=args.seed,
            exact_norm=row["norm"],
            contract={"evaluations": row["evaluations"], "fit_steps": args.fit_steps, "dtype": "float64"},
        )
        for metric, unit in units.items()
    ]


def table(rows: list[dict[str, Any]], V: int, L: int) -> str:
    """Markdown, one row an estimator: bias (in brackets within three of its errors), variance, cosine of each f."""
    cells = {(row["name"], row["f"]): row for row in rows}
    norms = {row["f"]: row["norm"] for row in rows}
    lines = [
        f"\nV = {V}, L = {L}: bias, variance, cosine\n",
        "| estimator | " + " | ".join(f"{kind} (‖∇‖ {norms[kind]:.2f})" for kind in FUNCTIONS) + " |",
        "|---" * (len(FUNCTIONS) + 1) + "|",
    ]
    for name in dict.fromkeys(row["name"] for row in rows):
        texts = [show(cells.get((name, kind))) for kind in FUNCTIONS]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def show(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    seen = row["bias"] > 3 * row["bias_error"] and row["bias"] > 1e-9
    bias = f"{row['bias']:.3f}" if seen else f"({row['bias']:.3f})"
    return f"{bias} {row['variance']:.3f} {row['cosine']:.2f}"


def plot(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """bias² against variance at L = 3, one panel for each V and f. An unbiased estimator lies by the line bias² = variance /
    repeats, which is what its mean over the repeats is off by."""
    try:
        import matplotlib
    except ImportError:
        print("\nno plot: pip install matplotlib")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "estimators", "font.size": 8}
    floor = 1e-5
    sizes = [V for V, L in SIZES if L == 3]
    figure, axes = pyplot.subplots(len(sizes), len(FUNCTIONS), figsize=(12, 8.5), sharex=True, sharey=True)
    styles = {
        name: {"marker": "o" if kind.unbiased else "^", "color": f"C{i}" if i < 10 else ("k", "gold", "navy")[i - 10]}
        for i, (name, kind) in enumerate((k, v) for k, v in ESTIMATORS.items() if k != "exact")
    }
    shown = {}
    for (i, V), (j, kind) in product(enumerate(sizes), enumerate(FUNCTIONS)):
        ax = axes[i, j]
        ax.loglog([floor, 10], [floor / args.repeats, 10 / args.repeats], color="0.8", zorder=0)
        for row in rows:
            if (row["V"], row["L"], row["f"]) == (V, 3, kind):
                x, y = max(row["variance"], floor), max(row["bias"] ** 2, floor)
                shown[row["name"]] = ax.scatter(x, y, s=34, alpha=0.8, linewidths=0, **styles[row["name"]])
        ax.set(title=f"{kind}, V = {V}", xlim=(floor / 2, 10), ylim=(floor / 2, 3))
    for ax in axes[-1]:
        ax.set_xlabel("variance")
    for ax in axes[:, 0]:
        ax.set_ylabel("bias²")
    figure.legend(shown.values(), shown, loc="outside right center")
    figure.suptitle(
        f"L = 3, {args.num_samples} evaluations of f an estimate, {args.repeats} repeats; "
        f"circles: unbiased, line: bias² = variance / repeats; below {floor:g}: at {floor:g}"
    )
    figure.set_layout_engine("constrained")
    args.plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.plot, metadata={"Date": None} if args.plot.suffix == ".svg" else None)
    print(f"\n{args.plot}")


if __name__ == "__main__":
    main()
