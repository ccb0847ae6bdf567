"""RUN → a model ready to be measured."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowlm import MODEL_TYPES
from mtp.heads.base import JointHead
from mtp.model import MTPForCausalLM
from training.config import read_yaml
from training.data.tokenizer import load_tokenizer
from training.hardware import quiet_libraries
from training.run_dir import RunDir, model_folder


@dataclass(frozen=True)
class LoadedRun:
    """folder: what from_pretrained loads. subject: the head's name, or trunk. train_seed and ema: None where the run's config is not there."""

    name: str
    model: MTPForCausalLM
    tokenizer: Any
    subject: str
    train_seed: int | None
    ema: float | None
    config: dict[str, Any]
    folder: str = ""

    @property
    def trunk_seed(self) -> int | None:
        """The seed its trunk was trained with; unknown where the trunk came frozen from elsewhere."""
        return None if (self.config.get("trunk") or {}).get("frozen") else self.train_seed

    @property
    def head(self) -> JointHead:
        if self.model.head is None:
            raise ValueError(f"{self.name} is a trunk alone: it has no joint head to measure")
        return self.model.head

    @property
    def block_size(self) -> int:
        return self.model.head.block_size if self.model.head is not None else 1


def load_run(run: str, dtype: torch.dtype | str = torch.float32, device: torch.device | None = None) -> LoadedRun:
    """run: a run directory, a checkpoint, a model folder, or any causal LM's name (read as a trunk alone). dtype: of the
    weights, "auto" as they were saved. device: default the GPU where there is one."""
    from transformers import AutoModelForCausalLM

    quiet_libraries()
    if model_type(run) in MODEL_TYPES:
        raise ValueError(f"{run} is a flow language model, which has no trunk: leaplm probe and sample read it")
    try:
        folder = str(model_folder(run))
    except ValueError:
        folder_of_ours = "/" in run and Path(run).parent.is_dir()  # runs/typo, which also reads as owner/name
        if Path(run).exists() or folder_of_ours or run.startswith((".", "/")) or run.count("/") > 1:  # no Hub id
            raise
        folder = run
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    except Exception as error:  # a broken file fails in as many ways as there are formats
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{run} did not load: {first_line}") from error
    if not isinstance(model, MTPForCausalLM):
        model = MTPForCausalLM.from_trunk(model)
    model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    config, threads = run_facts(run)
    if threads:
        torch.set_num_threads(threads)
    return LoadedRun(
        run,
        model,
        load_tokenizer(folder),
        model.config.head or "trunk",
        config.get("seed"),
        config.get("training", {}).get("ema"),
        config,
        folder,
    )


def model_type(run: str) -> str | None:
    """What config.json says the run is; None where there is none to read, as of a model on the Hub."""
    try:
        file = model_folder(run) / "config.json"
    except ValueError:
        return None
    return json.loads(file.read_text()).get("model_type")


def run_facts(run: str) -> tuple[dict[str, Any], int | None]:
    """The configuration of the run that a run directory or one of its checkpoints belongs to, and the
    thread count that was found best for its model."""
    path = Path(run)
    for folder in [path, *path.parents][:4] if path.exists() else []:
        if (folder / "checkpoints").is_dir() and (folder / "config.yaml").is_file():
            return read_yaml(folder / "config.yaml"), RunDir(folder).provenance().get("threads")
    return {}, None
