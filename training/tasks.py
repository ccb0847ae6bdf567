"""What a configuration trains: a language model with or without a joint head, or an image model."""

from accelerate import Accelerator

from training.config import RunConfig
from training.task import Task


def build(config: RunConfig, accelerator: Accelerator) -> Task:
    if config.image is not None:
        from training.image_task import build as build_images

        return build_images(config, accelerator)
    from training.mtp_task import build as build_heads

    return build_heads(config, accelerator)
