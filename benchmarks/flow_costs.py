"""What a training step of each flow language model costs beside the autoregressive model of its network, data and batch.

    python -m benchmarks.flow_costs [--json benchmarks/results/speed/flow-train.json]

One thread of an otherwise idle machine, optimizer included, steps of all presets in turns. Passes: states that went through the
network over those of the batch, with a gradient to come (three times the work of one without) and without, twice where a derivative
went along, so that `expected` is what those passes alone would take, in steps of the autoregressive model in the same precision. Peak
memory: above what is held between steps. Presets that begin with a run begin afresh here; those that learn from one are left out: they
cost what the same objective costs from scratch.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.cells import settings
from benchmarks.costs import one_step
from benchmarks.flow_text import PLAN
from eval.records import record, write_records
from eval.speed.floor import flop_counter
from eval.speed.memory import peak_memory
from eval.speed.timing import interleaved, load_average, pair_ratio
from flowmap.backbone import Backbone
from training.config import RunConfig, load_preset, override
from training.hardware import keep_freed_memory, quiet_libraries
from training.tasks import build

PLAIN = "flow-ar"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=PLAN["characters"])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="fields of all presets")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    quiet_libraries()
    keep_freed_memory()
    torch.set_num_threads(1)
    configs = {
        name: override(load_preset(name), **settings(args.set)) for name in dict.fromkeys([PLAIN, *args.presets])
    }
    own = {
        name: override(config, flow__start=None)
        for name, config in configs.items()
        if config.flow and not (config.flow.teacher or config.flow.encoder)
    }
    records = measure(own, args.rounds)
    print_table(records)
    if args.json:
        write_records(args.json, ["python", "-m", "benchmarks.flow_costs", *sys.argv[1:]], records)


def measure(configs: dict[str, RunConfig], rounds: int) -> list[dict[str, Any]]:
    precisions = {config.training.precision for config in configs.values()}
    plain = {p: one_step(override(configs[PLAIN], training__precision=p), build) for p in precisions}
    steps = {name: one_step(config, build) for name, config in configs.items()}
    turns = steps | {f"{PLAIN}, {precision}": run for precision, run in plain.items()}
    work = {name: work_of(run, configs[PLAIN]) for name, run in steps.items()}
    seconds = interleaved(turns, rounds, "training steps")
    records = []
    for name, run in steps.items():
        plan = configs[name].training
        ratio = pair_ratio(seconds[name], seconds[f"{PLAIN}, {plan.precision}"])
        with_gradient, without, flops = work[name]
        contract = {
            "batch": plan.batch_size,
            "length": configs[name].data.length,
            "threads": 1,
            "dtype": plan.precision,
        }
        common: dict[str, Any] = {
            "on": configs[name].data.name, "subject": name, "kind": "estimate", "contract": contract,
        }  # fmt: skip
        details = {
            "with_gradient": with_gradient, "without": without, "expected": (3 * with_gradient + without) / 3,
            "flops": flops / work[PLAIN][2],
        }  # fmt: skip
        records.append(
            record(
                "latency", ratio.value, unit=f"× a training step of {PLAIN}", interval=[ratio.low, ratio.high],
                stable=ratio.stable, n=rounds, load_average=load_average(), details=details, **common,
            )
        )  # fmt: skip
        if (peak := peak_memory(run, torch.device("cpu"))) is not None:
            records.append(record("peak_memory", peak, unit="bytes", **common))
    return records


def work_of(run: Callable[[], object], config: RunConfig) -> tuple[float, float, int]:
    """Passes of the batch with a gradient to come and without, and FLOPs of one step."""
    states = config.training.batch_size * config.data.length
    with counted() as held, flop_counter() as flops:
        run()
    return held[True] / states, held[False] / states, flops.get_total_flops()


@contextmanager
def counted() -> Iterator[dict[bool, int]]:
    """States that go through any backbone, by whether gradients are kept."""
    held, features, jvp, copies = {True: 0, False: 0}, Backbone.features, torch.func.jvp, [1]

    def count(self: Backbone, x: Tensor, *args: Any, **told: Any) -> Tensor:
        held[torch.is_grad_enabled()] += x.shape[0] * x.shape[1] * copies[0]
        return features(self, x, *args, **told)

    def along(*args: Any, **told: Any) -> Any:
        copies[0] = 2
        try:
            return jvp(*args, **told)
        finally:
            copies[0] = 1

    with patch.object(Backbone, "features", count), patch.object(torch.func, "jvp", along):
        yield held


def print_table(records: list[dict[str, Any]]) -> None:
    peaks = {r["subject"]: r["value"] for r in records if r["metric"] == "peak_memory"}
    print(
        "| preset | passes with gradient | without | expected | time × AR | over expected | FLOPs × AR | peak memory |"
    )
    print("|---" * 8 + "|")
    for r in records:
        if r["metric"] != "latency":
            continue
        d, (low, high) = r["details"], r["interval"]
        told = "" if r["stable"] else ", no result"
        peak = f"{peaks[r['subject']] / 1e6:.0f} MB" if r["subject"] in peaks else ""
        print(
            f"| {r['subject']} | {d['with_gradient']:.2f} | {d['without']:.2f} | {d['expected']:.2f} | {r['value']:.2f} "
            f"({low:.2f}–{high:.2f}{told}) | {r['value'] / d['expected']:.2f} | {d['flops']:.2f} | {peak} |"
        )


if __name__ == "__main__":
    main()
