"""Every objective on one network at equal training time: few-step quality on images.

    python -m benchmarks.images --costs                       CPU seconds of a step of each, interleaved; with --objectives of these alone,
                                                              added to those that are there in the same unit
    python -m benchmarks.images --on digits --seeds 0 1 2     cells that are not there yet, then the tables
    python -m benchmarks.images --objectives imm --seeds 0 --set image.options.group_size=16      a trial: a cell of its own

A cell trains RUNS/ON/NAME-SEED for the number of steps that its objective makes in --seconds of one core (from the
costs), without classes, draws as many images as the training split has (5,000 at most) with averaged weights, and scores them against
the test split, or with --select against a fifth of the training images, held out to choose settings on. Each is drawn from as it was
trained to be (flowmap.objectives: pushforward; flow matching by Euler's method, DDIM on the cosine path; consistency by restarts; energy
and drifting in one step). Cells lie in benchmarks/results/images/, those of other settings in its folder trials/.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.cells import cell, cell_name, settings
from benchmarks.costs import BESIDE, TIMED_STEP, measure_costs, seconds_of_a_step
from benchmarks.image_objectives import EULER_STEPS, FIELDS, STEPS, counts_of, options_of
from eval.images.drawing import draw_images, load_image_run
from eval.images.scorer import ImageScorer
from eval.records import record, seeds_mean
from flowmap.backbone import VERSION
from flowmap.objectives import OBJECTIVES as KNOWN
from imm.data import Images, load_images
from training.config import PRESETS, RunConfig, load_preset, override, to_dict
from training.image_task import build
from training.loop import train
from training.run_dir import RunDir
from training.tasks import build as build_task

RESULTS = Path(__file__).parent / "results" / "images"
OBJECTIVES = (
    "flow-matching", "imm", "lagrangian", "terminal-velocity", "progressive", "shortcut", "improved-mean-flow", "mean-flow",
    "eulerian", "alpha-flow", "trajectory", "consistency", "consistency-map", "continuous-consistency", "energy", "drifting",
)  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"image__objective": name} for name in OBJECTIVES},
    "imm, s zeroed": {"image__objective": "imm", "image__use_s": False},
    "lagrangian, s zeroed": {"image__objective": "lagrangian", "image__use_s": False},
    "flow-matching, cosine": {"image__objective": "flow-matching", "image__path": "cosine"},
}
SCORED_IN_FULL = (1, 4, 8, 50)
SNAPSHOTS = 24
"""Of IMM's training, kept for benchmarks.claims."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", nargs="+", default=["digits"], choices=["digits", "mnist", "fashion-mnist", "cifar10"])
    parser.add_argument("--objectives", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=240.0, help="of training on one core, for each cell")
    parser.add_argument("--runs", type=Path, default=Path("runs/images"))
    parser.add_argument("--kept", action="store_true", help="the table of the cells that are there; trains nothing")
    parser.add_argument("--costs", action="store_true", help="measure the cost of a step of each objective instead")
    parser.add_argument("--select", action="store_true", help="score on held-out training images: to choose settings")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other values: cells of their own")
    args = parser.parse_args()
    command = ["python", "-m", "benchmarks.images", *sys.argv[1:]]
    variant = settings([*args.set, *["image.selection=true"] * args.select])
    for on in args.on:
        if args.costs:
            configs = {
                name: config_of(on, name, 0, 2 * TIMED_STEP) for name in {BESIDE: 0, **dict.fromkeys(args.objectives)}
            }
            measure_costs(configs, build, on, costs_of(on), command, later=set(args.objectives) != set(VARIANTS))
            continue
        costs = read_costs(on)
        found = []
        for name, seed in product(args.objectives, args.seeds):
            steps = round(args.seconds / costs[name])
            found += (made := image_cell(on, name, seed, steps, args.runs, command, args.kept, variant))
            if made:
                print(f"{on} {name} seed {seed}", flush=True)
        if found:
            print_table(on, found)


def costs_of(on: str) -> Path:
    return RESULTS / f"{on}-costs.json"


def read_costs(on: str) -> dict[str, float]:
    return seconds_of_a_step(costs_of(on), f"python -m benchmarks.images --on {on} --costs")


def config_of(
    on: str, name: str, seed: int, steps: int = 1, variant: Mapping[str, Any] = MappingProxyType({})
) -> RunConfig:
    config = override(load_preset(str(PRESETS / f"_{on}.yaml")), image__conditional=False, **VARIANTS[name])
    assert config.image is not None
    objective = config.image.objective
    made: dict[str, Any] = {
        "image__time_scale": KNOWN[objective].time_scale, "image__options": options_of(objective, steps), **FIELDS.get(objective, {}),
    }  # fmt: skip
    if KNOWN[objective].bound and config.image.parameterisation == "endpoint":
        made["image__parameterisation"] = "simple-edm"
    if name == "imm":
        every = max(1, steps // SNAPSHOTS)
        made |= {"training__checkpoint_every": every, "training__keep_checkpoints": SNAPSHOTS}
    return override(override(config, **made), **{**variant, "seed": seed, "training__steps": steps})


def image_cell(
    on: str,
    name: str,
    seed: int,
    steps: int,
    runs: Path,
    command: list[str],
    kept: bool = False,
    variant: Mapping[str, Any] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    config = config_of(on, name, seed, steps, variant)
    short = short_name(name, seed, variant)

    def measure() -> list[dict[str, Any]]:
        folder = runs / on / short
        train(config, folder, build_task)
        spent = RunDir(folder).cpu_seconds()
        run, images = load_image_run(str(folder)), images_of(config)
        scorer, num = ImageScorer(images), min(len(images.train), 5000)
        records = [{**r, "beside": name} for r in scorer.floors(num)]
        own, most = run.model.config.sampler, run.model.config.most_steps
        ways = [own, "restart"] if "s zeroed" in name else [own]
        for sampler, count in [(way, count) for way in ways for count in counts_of(way, most)]:
            drawn = draw_images(run.model, num, count, sampler, seed)
            contract = {
                "steps": count, "nfe": drawn.nfe, "sampler": sampler, "dtype": "float32", "ema": config.training.ema,
            }  # fmt: skip
            more: dict[str, Any] = {
                "contract": contract, "train_seed": seed, "sample_seed": seed, "trained_steps": steps,
                "training_cpu_seconds": spent,
            }  # fmt: skip
            if count in SCORED_IN_FULL:
                records += scorer.score(drawn.pixels, name, **more)
            else:
                value = scorer.fid(drawn.pixels)
                records.append(
                    record(
                        "classifier_fid",
                        value,
                        on=on,
                        subject=name,
                        unit="FID",
                        kind="estimate",
                        n=num,
                        split=images.split,
                        **more,
                    )
                )
        return records

    inputs = {
        "config": to_dict(config), "data": images_of(config).fingerprint, "steps": [list(STEPS), list(EULER_STEPS)],
        "in full": list(SCORED_IN_FULL), "network": VERSION, "objective": version_of(config),
    }  # fmt: skip
    folder = RESULTS / "trials" if variant else RESULTS
    return cell(folder / f"{on}-{short}.json", inputs, command, measure, kept)


def version_of(config: RunConfig) -> int | None:
    assert config.image is not None
    return KNOWN[config.image.objective].version


def short_name(name: str, seed: int, variant: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Of a cell's file and of its run's folder."""
    return cell_name(name.replace(", ", "-").replace(" ", "-"), seed, variant)


def images_of(config: RunConfig) -> Images:
    assert config.image is not None
    return load_images(config.image.name, config.data.root, selection=config.image.selection)


def print_table(on: str, records: Sequence[dict[str, Any]]) -> None:
    """classifier-FID by steps, mean ± standard error over seeds; nearest-train distance at some."""
    floors = {r["subject"]: r["value"] for r in records if r["metric"] == "classifier_fid" and "beside" in r}
    near = [r["value"] for r in records if r["metric"] == "nearest_train_distance" and r["subject"] == "test"]
    print(f"\n{on}: FID of training images {floors['train']:.2f}, resampled {floors['train-resampled']:.2f}; ", end="")
    print(f"test images lie {near[0]:.3f} from the nearest of train")
    heads = [f"{count} steps" for count in STEPS]
    print(
        f"| objective | sampler | training steps | CPU s | {' | '.join(heads)} | nearest train, 1 / 4 / 8 / 50 steps |"
    )
    print("|---" * (len(STEPS) + 5) + "|")
    own = [r for r in records if "beside" not in r]
    for name, sampler in dict.fromkeys((r["subject"], r["contract"]["sampler"]) for r in own):
        rows = [r for r in own if (r["subject"], r["contract"]["sampler"]) == (name, sampler)]

        def value(metric: str, steps: int, digits: int, rows: list[dict[str, Any]] = rows) -> str:
            found = [r for r in rows if r["metric"] == metric and r["contract"]["steps"] == steps]
            if not found:
                return "–"
            mean = seeds_mean(found)
            error = f" ± {mean['stderr']:.{digits}f}" if mean.get("stderr_over") == "seeds" else ""
            return f"{mean['value']:.{digits}f}{error}"

        cells = [value("classifier_fid", count, 1 if on != "digits" else 2) for count in STEPS]
        nearest = " / ".join(value("nearest_train_distance", count, 3) for count in SCORED_IN_FULL)
        spent = sum(r.get("training_cpu_seconds", float("nan")) for r in rows) / len(rows)
        print(f"| {name} | {sampler} | {rows[0]['trained_steps']} | {spent:.0f} | {' | '.join(cells)} | {nearest} |")


if __name__ == "__main__":
    main()
