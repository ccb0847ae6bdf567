"""`leaplm sample` of an image run: a grid for every number of steps, and on request what they are worth."""

from pathlib import Path
from typing import Any

from eval.images.drawing import draw_images, load_image_run
from eval.images.grid import write_grid
from eval.images.inception import Inception
from eval.images.scorer import ImageScorer
from eval.records import keep_records, write_records
from eval.tables import print_row
from imm.data import load_images

SHOWN = ("classifier_fid", "kid", "energy_distance", "precision", "recall", "nearest_train_distance")
GRID = 100
"""Images of a grid at most."""


def sample_images(args: Any, command: list[str]) -> None:
    records: list[dict[str, Any]] = []
    if args.inception and not args.score:
        raise ValueError("--inception adds a score: say --score too")
    inception = Inception(args.inception) if args.inception else None
    guidance = args.refining.guidance
    shown = (*SHOWN, "inception_fid") if inception else SHOWN
    for name in args.runs:
        run = load_image_run(name)
        sampler, scorer = args.refining.sampler or run.model.config.sampler, None
        if args.score:
            if run.config is None or run.config.image is None:
                raise ValueError(f"{name} does not say what it was trained on: nothing to score against")
            plan = run.config.image
            scorer = ImageScorer(
                load_images(plan.name, run.config.data.root, plan.size, plan.selection), inception=inception
            )
            print_row(f"\n{run.subject}", "steps", "nfe", *shown)
        made = []
        for steps in args.steps:
            drawn = draw_images(run.model, args.num, steps, sampler, args.seed, guidance, args.label, args.batch)
            picture = _place(args.out, name, steps, len(args.runs) * len(args.steps) > 1)
            write_grid(picture, drawn.pixels[:GRID], columns=10)
            if scorer is None:
                print(f"{picture}: {min(GRID, args.num)} images, {steps} steps")
                continue
            contract = {
                "steps": steps, "nfe": drawn.nfe, "sampler": sampler, "guidance": guidance, "dtype": "float32",
                "ema": run.config.training.ema if run.config else None, "batch": args.batch,
            }  # fmt: skip
            seeds = {"train_seed": run.config.seed if run.config else None, "sample_seed": args.seed}
            found = scorer.score(drawn.pixels, run.subject, run=name, contract=contract, **seeds)
            values = {r["metric"]: r["value"] for r in found}
            print_row("", str(steps), str(drawn.nfe), *(f"{values[metric]:.4g}" for metric in shown))
            made += found
        if scorer is not None:
            made += [{**r, "contract": {}} for r in scorer.floors(args.num)]
            keep_records(name, f"images-{sampler}", command, made)
        records += made
    if args.json:
        write_records(args.json, command, records)


def _place(out: Path | None, run: str, steps: int, several: bool) -> Path:
    """RUN/samples/steps-N.png, or the file asked for, numbered where there are several."""
    if out is None:
        return Path(run) / "samples" / f"steps-{steps}.png"
    return out.with_name(f"{out.stem}-{Path(run).name}-{steps}{out.suffix or '.png'}") if several else out
