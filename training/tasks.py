"""What a configuration trains: a language model with or without a joint head, a flow language model, or an image model."""

from accelerate import Accelerator

from training.config import RunConfig
from training.task import Task


def build(config: RunConfig, accelerator: Accelerator) -> Task:
    if config.image is not None and config.flow is not None:
        raise ValueError("image and flow exclude each other: a run trains one model")
    if config.flow is not None:
        from training.flow_task import build as build_flow

        return build_flow(config, accelerator)
    if config.image is not None:
        from training.image_task import build as build_images

        return build_images(config, accelerator)
    from training.mtp_task import build as build_heads

    return build_heads(config, accelerator)
