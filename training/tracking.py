"""Experiment trackers by name, through accelerate's own `log_with`: what goes to metrics.jsonl is told to them too.

tensorboard writes into RUN/trackers, `tensorboard --logdir RUN/trackers` shows it. wandb is told the run's folder as its name;
WANDB_MODE=offline keeps it from the network.
"""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration

from training.config import RunConfig, known_keys, to_dict

FOLDER = "trackers"
INSTALL = {"tensorboard": "pip install 'leaplm[trackers]'", "wandb": "pip install wandb"}


def log_with(tracker: str | None, run_dir: Path) -> dict[str, Any]:
    """What the Accelerator is made with. ValueError where the tracker is not installed: accelerate alone would go on without."""
    if tracker is None:
        return {}
    if tracker not in [str(getattr(known, "value", known)) for known in get_available_trackers()]:
        raise ValueError(f"training.tracker {tracker} is not installed: {INSTALL[tracker]}")
    place = ProjectConfiguration(project_dir=str(run_dir), logging_dir=str(run_dir / FOLDER))
    return {"log_with": tracker, "project_config": place}


def begin(accelerator: Accelerator, config: RunConfig, run_dir: Path) -> None:
    """Open the tracker and tell it the configuration."""
    if config.training.tracker is None:
        return
    if accelerator.is_main_process:
        (run_dir / FOLDER).mkdir(exist_ok=True)
    wandb = {"name": run_dir.name, "dir": str(run_dir / FOLDER)}
    accelerator.init_trackers("leaplm", config=flat(config), init_kwargs={"wandb": wandb})


def tell(accelerator: Accelerator, record: dict[str, Any]) -> None:
    """A record of metrics.jsonl, its numbers under SPLIT/NAME at its step."""
    values = {f"{record['split']}/{name}": value for name, value in record.items() if name not in ("step", "split")}
    accelerator.log(values, step=record["step"])


def flat(config: RunConfig) -> dict[str, int | float | bool | str]:
    """By dotted key; what is no plain value as text."""
    values: dict[str, Any] = {}
    for key in known_keys():
        held: Any = to_dict(config)
        for part in key.split("."):
            held = held.get(part) if isinstance(held, dict) else None
        if held is not None:
            values[key] = held if isinstance(held, int | float | bool | str) else str(held)
    return values
