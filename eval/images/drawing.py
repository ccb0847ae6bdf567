"""RUN → an image model, and the images it draws with any sampler at any number of steps."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from eval.loading import run_facts
from flowmap.rng import Rng
from flowmap.samplers import Guided, sample, uniform_times
from imm.model import ImageFlow, null_labels
from training.config import RunConfig, validate
from training.run_dir import model_folder


@dataclass(frozen=True)
class LoadedImages:
    """subject: the objective it was trained with. config: the run's, None where it is not there."""

    name: str
    model: ImageFlow
    subject: str
    config: RunConfig | None


@dataclass(frozen=True)
class Drawn:
    """pixels: uint8 (num, h, w, c). nfe: network calls an image."""

    pixels: np.ndarray
    labels: np.ndarray
    nfe: int


def load_image_run(run: str) -> LoadedImages:
    """Raises ValueError where it is no image model."""
    model: Any = ImageFlow.from_pretrained(str(model_folder(run)), dtype=torch.float32)
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    facts, threads = run_facts(run)
    if threads:
        torch.set_num_threads(threads)
    config = validate(facts, run) if facts else None
    subject = config.image.objective if config and config.image else "image-flow"
    return LoadedImages(run, model, subject, config)


@torch.no_grad()
def draw_images(
    model: ImageFlow,
    num: int,
    steps: int,
    sampler: str | None = None,
    seed: int = 0,
    guidance: float = 1.0,
    label: int | None = None,
    batch: int = 512,
) -> Drawn:
    """Classes in turn, or one of them. sampler: default the model's own. Image j is a pure function of (seed, j) and the
    sampler, whatever the batch."""
    sampler, most = sampler or model.config.sampler, model.config.most_steps
    if most is not None and steps > most:
        raise ValueError(f"steps {steps}: this model was trained to be drawn from in {most}")
    classes = model.config.num_classes
    if label is not None and not 0 <= label < max(classes, 1):
        raise ValueError(f"label {label}: this model knows classes 0 to {classes - 1}")
    device = next(model.parameters()).device
    parts, nfe = [], 0
    labels = torch.full((num,), label) if label is not None else torch.arange(num) % max(classes, 1)
    for rows in torch.arange(num).split(batch):
        rng = Rng(seed, rows.to(device))
        x = model.map.path.draw_noise(rng, "sample", torch.zeros(len(rows), *model.shape, device=device))
        context = model.condition(labels[rows].to(device))
        without = model.condition(null_labels(model, len(rows), device))
        guided = Guided(model.map, context, without, guidance)
        times = uniform_times(steps, model.config.t_max)
        out = sample(sampler, guided, x, times, rng)
        parts.append(model.images(out.x))
        nfe = out.nfe
    return Drawn(np.concatenate(parts), labels.numpy(), nfe)
