"""The image task: a set of images, the shared backbone over patches, any objective on the two-time map."""

from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from eval.images.distances import negative_distance, squared_mmd
from flowmap.objectives import OBJECTIVES
from flowmap.rng import Rng
from flowmap.samplers import Guided, sample, uniform_times
from imm.batch import ImageBatches
from imm.data import load_images
from imm.model import ImageFlow, ImageFlowConfig
from training.config import RunConfig
from training.objectives import build_objective
from training.task import Task

PROBE_STEPS = (1, 4)
PROBE_SAMPLES = 256


def build(config: RunConfig, accelerator: Accelerator) -> Task:
    """Everything the loop needs; the same on every rank."""
    plan = config.image
    assert plan is not None
    with accelerator.main_process_first():
        images = load_images(plan.name, config.data.root, plan.size, plan.selection)
    torch.manual_seed(config.seed)  # an objective may have weights of its own
    objective = build_objective("image", plan, OBJECTIVES)
    if plan.conditional and not objective.takes_classes:
        raise ValueError(f"image.objective {plan.objective} knows no classes: set image.conditional to false")
    if objective.bound and plan.parameterisation == "endpoint":
        raise ValueError(
            f"image.parameterisation endpoint lets go of the data near it, where {plan.objective} learns from it: take simple-edm"
        )
    no_label = images.num_classes
    scaling = images.scaling
    channels, height, width = images.shape
    torch.manual_seed(config.seed)  # so that the network starts the same under every objective
    model = ImageFlow(
        ImageFlowConfig(  # type: ignore[call-arg]  # the base class takes more than its fields
            channels=channels,
            height=height,
            width_pixels=width,
            patch=plan.patch,
            num_classes=images.num_classes if plan.conditional else 0,
            shift=scaling.shift,
            scale=scaling.scale,
            path=plan.path,
            parameterisation=plan.parameterisation,
            t_max=getattr(objective, "t_max", 1.0),
            sampler="ddim" if (objective.sampler, plan.path) == ("euler", "cosine") else objective.sampler,
            most_steps=objective.most_steps,
            backbone={
                name: getattr(plan, name)
                for name in ("width", "depth", "heads", "positions", "embed", "use_s", "attention")
            }
            | {"time_scale": plan.time_scale or objective.time_scale},
        )
    )
    objective.check_path(model.map.path)
    size = config.training.batch_size
    train = ImageBatches(
        scaling.to_model(images.train),
        images.train_labels,
        size,
        config.seed,
        plan.flip,
        plan.label_dropout if plan.conditional else None,
        no_label,
    )
    test = scaling.to_model(images.test)
    held = ImageBatches(test, images.test_labels, size, 0, drop=0.0 if plan.conditional else None)
    count = min(config.training.evaluate_batches, max(1, len(test) // size))

    def save(folder: Path, state: dict[str, Tensor]) -> None:
        model.save_pretrained(folder, state_dict={f"map.{name}": value for name, value in state.items()})

    return Task(
        model=model.map,
        trainable=model.map,
        prefix="",
        objective=objective,
        train=train,
        train_seed=config.seed,
        validation=[partial(held.batch, n, torch.arange(size)) for n in range(count)],
        save=save,
        facts={
            "images": images.name,
            "fingerprint": images.fingerprint,
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        probe=partial(_energy_distances, model, test[:PROBE_SAMPLES], torch.as_tensor(images.test_labels)),
    )


def _energy_distances(model: ImageFlow, test: Tensor, labels: Tensor) -> dict[str, float]:
    """Of a few samples to held-out images, from the same noise every time: the progress that a loss does not show."""
    device = next(model.parameters()).device
    label = labels[: len(test)].to(device)
    found = {}
    for steps in PROBE_STEPS:
        if steps > (model.config.most_steps or steps):
            continue
        rng = Rng(0, torch.arange(len(test), device=device))
        x = model.map.path.draw_noise(rng, "probe", test.to(device))
        times = uniform_times(steps, model.config.t_max)
        out = sample(model.config.sampler, Guided(model.map, model.condition(label)), x, times, rng)
        drawn = out.x.flatten(1).float().cpu()
        found[f"energy_distance_{steps}"] = squared_mmd(negative_distance, drawn, test.flatten(1)).value
    return found
