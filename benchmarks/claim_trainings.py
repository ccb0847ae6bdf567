"""The trainings that a claim of benchmarks.claims looks at: cells of benchmarks.images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import images


@dataclass(frozen=True)
class Trainings:
    """seconds: of training on one core. runs: where they lie. command: what asks for them."""

    on: str
    seeds: list[int]
    seconds: float
    runs: Path
    command: list[str]

    def steps(self, name: str) -> int:
        return round(self.seconds / images.read_costs(self.on)[name])

    def fids(self, name: str) -> list[dict[str, Any]]:
        """Of every seed, at every number of steps."""
        return [
            r
            for seed in self.seeds
            for r in images.image_cell(self.on, name, seed, self.steps(name), self.runs, self.command)
            if r["metric"] == "classifier_fid" and "beside" not in r
        ]

    def file(self, name: str) -> Path:
        """Of what a claim ends in."""
        return images.RESULTS / "claims" / f"{self.on}-{name}"


def new_figure(count: int) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=(5 * count, 4), constrained_layout=True, squeeze=False)
    return figure, axes[0]
