"""The image map as a transformers model: patches, the shared backbone, the two-time map around it.

An image is a set of patches, one that holds the whole of it at most (as the presets of digits and MNIST have it), each a state vector of the backbone.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from flowmap.backbone import Backbone, BackboneConfig, Context
from flowmap.maps import FlowMap
from flowmap.path import PATHS
from imm.data import SIGMA_DATA, Scaling


class ImageFlowConfig(PreTrainedConfig):
    """channels, height, width_pixels: of an image; patch: side of a patch. shift, scale: from pixels to model space.
    t_max: where sampling starts, the latest time that was trained. sampler: by which it is drawn from where nothing else is
    asked for; most_steps: that it was trained for, None for any number. backbone: BackboneConfig's fields."""

    model_type = "leaplm-image"

    channels: int = 1
    height: int = 8
    width_pixels: int = 8
    patch: int = 2
    num_classes: int = 0
    shift: float | int = 0.0
    scale: float | int = 1.0
    path: str = "linear"
    parameterisation: str = "euler-fm"
    t_max: float | int = 1.0
    sampler: str = "pushforward"
    most_steps: int | None = None
    backbone: dict[str, Any] | None = None


class ImageFlow(PreTrainedModel):
    """`map` is the FlowMap on (batch, channels, height, width); `images` turns its states into bytes."""

    config_class = ImageFlowConfig
    base_model_prefix = ""

    def __init__(self, config: ImageFlowConfig) -> None:
        super().__init__(config)
        self.map = FlowMap(
            PatchNetwork(config),
            PATHS[config.path](noise_scale=SIGMA_DATA),
            config.parameterisation,  # type: ignore[arg-type]
            SIGMA_DATA,
        )
        self.scaling = Scaling(config.shift, config.scale)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The backbone has drawn its own."""

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, context: Context | None = None) -> Tensor:
        """v(x_t, t, s), (batch, channels, height, width)."""
        return self.map.velocity(x_t, t, s, context)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.config.channels, self.config.height, self.config.width_pixels

    def condition(self, label: Tensor) -> Context | None:
        """label: (batch,) classes; num_classes says "no class". None from a network that takes none."""
        return Context(label=label) if self.config.num_classes else None

    def images(self, x: Tensor) -> Any:
        """States → uint8 (batch, height, width, channels)."""
        return self.scaling.to_pixels(x)


class PatchNetwork(nn.Module):
    """(B, C, H, W) ↔ (B, patches, C·p²) around the backbone."""

    def __init__(self, config: ImageFlowConfig) -> None:
        super().__init__()
        p = self.patch = config.patch
        if config.height % p or config.width_pixels % p:
            raise ValueError(f"images of {config.height}×{config.width_pixels} do not divide into patches of {p}")
        self.grid = config.height // p, config.width_pixels // p
        fields = {"positions": "learned-2d", **(config.backbone or {})}
        self.backbone = Backbone(
            BackboneConfig(state_size=config.channels * p * p, grid=self.grid, num_classes=config.num_classes, **fields)
        )

    def forward(self, x: Tensor, t: Tensor, s: Tensor, context: Context | None = None) -> Tensor:
        (rows, columns), p = self.grid, self.patch
        batch, channels = x.shape[:2]
        states = x.reshape(batch, channels, rows, p, columns, p).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        out = self.backbone(states, t, s, context)
        out = out.reshape(batch, rows, columns, channels, p, p).permute(0, 3, 1, 4, 2, 5)
        return out.reshape(x.shape)


def null_labels(model: ImageFlow, count: int, device: torch.device) -> Tensor:
    """The label that says "no class", for guidance."""
    return torch.full((count,), model.config.num_classes, device=device)


AutoConfig.register(ImageFlowConfig.model_type, ImageFlowConfig)
AutoModel.register(ImageFlowConfig, ImageFlow)
