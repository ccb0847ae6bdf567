"""The baselines as transformers models: the flow language model's backbone, its codes and its `generate`, without a flow."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from flowlm.blocks import Blocks, cut_to_blocks
from flowlm.discrete.base import DiscreteMap
from flowlm.discrete.causal import CausalMap
from flowlm.discrete.masked import MaskedMap
from flowlm.discrete.writing import FILLING, write_causal, write_masked
from flowlm.draft import Watcher
from flowlm.generation import FlowGenerationConfig, FlowGenerationMixin
from flowlm.model import WindowConfig, make_codebook
from flowlm.token_map import Known
from flowlm.writing import Written, behind, write_blocks
from flowmap.backbone import Backbone, BackboneConfig
from flowmap.rng import Rng


class AutoregressiveConfig(WindowConfig):
    """codebook: of the codes that are read, and one more for the blank, here and below."""

    model_type = "leaplm-autoregressive"


class MaskedDiffusionConfig(WindowConfig):
    """time_conditioning: tell the network t."""

    model_type = "leaplm-masked-diffusion"

    time_conditioning: bool = False


class AutoregressiveGenerationConfig(FlowGenerationConfig):
    """A token a pass: it has no num_steps."""

    samplers = ("causal",)
    extras = ()

    def validate(self, *args: Any, **kwargs: Any) -> None:
        if self.num_steps != 1:
            raise ValueError(f"num_steps {self.num_steps}: an autoregressive model writes a token a pass, leave it out")
        super().validate(*args, **kwargs)


class MaskedDiffusionGenerationConfig(FlowGenerationConfig):
    """num_steps: passes."""

    samplers = FILLING
    extras = ("block_length",)


class DiscreteLM(PreTrainedModel, FlowGenerationMixin):
    """`map` is the model of windows, (batch, length) tokens."""

    base_model_prefix = ""
    map_class: ClassVar[type[DiscreteMap]]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        codebook = make_codebook(config.codebook, config.vocab_size + 1, config.state_size)
        fields = {"positions": "rope", **(config.backbone or {})}
        network = Backbone(
            BackboneConfig(
                state_size=codebook.state_size, output_size=config.vocab_size, max_positions=config.length, **fields
            )
        )
        self.map: Any = self.map_class(network, codebook, **self.map_options(config))
        self.post_init()

    def map_options(self, config: Any) -> dict[str, Any]:
        return {}

    def _init_weights(self, module: nn.Module) -> None:
        """The backbone and the codes have drawn their own."""


class AutoregressiveLM(DiscreteLM):
    config_class = AutoregressiveConfig
    generation_config_class = AutoregressiveGenerationConfig
    map_class = CausalMap

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of each token given those before it, (batch, length, vocab_size)."""
        return self.map.logits(tokens)

    def grids(self, steps: Sequence[int], sampler: str | None = None) -> tuple[int, ...]:
        """A step a token of the window, whatever is asked."""
        return (self.config.length,)

    def write(self, known: Known, rng: Rng, *, warp: Any = None, end: int | None = None, **how: Any) -> Written:
        """how: steps, sampler and watch, of which there is no choice and nothing to see."""
        return announced(write_causal(self.map, known, rng, warp=warp, end=end), how.get("told"))


class MaskedDiffusionLM(DiscreteLM):
    config_class = MaskedDiffusionConfig
    generation_config_class = MaskedDiffusionGenerationConfig
    map_class = MaskedMap

    def map_options(self, config: Any) -> dict[str, Any]:
        return {"time_conditioning": config.time_conditioning}

    def forward(self, x_t: Tensor, t: Tensor, known: Known | None = None) -> Tensor:
        """Logits of every token given x_t, whose blanks are vocab_size, (batch, length, vocab_size)."""
        return self.map.logits(x_t, t, known)

    def write(
        self, known: Known, rng: Rng, *, end: int | None = None, ends: Sequence[int] = (), told: Watcher | None = None,
        block_length: int | None = None, watch: Watcher | None = None, **how: Any,
    ) -> Written:  # fmt: skip
        """how: of `writing.write_masked`. A window is written as a whole, whatever its end and its end tokens; of a model of
        blocks, as many of them as reach the end, each of block_length, default the longest that was trained."""
        lengths = self.config.block_lengths
        if not lengths:
            return announced(write_masked(self.map, known, rng, watch=watch, **how), told)
        size, known = cut_to_blocks(known, lengths, block_length, end)

        def refine(context: Blocks, rows: Tensor, here: slice, own: Rng) -> tuple[Tensor, Tensor, int]:
            out = write_masked(self.map, context.known, own, context=context, watch=behind(context, watch), **how)
            return out.tokens, out.log_q, out.nfe

        return write_blocks(known, rng, size, refine, ends, told)


def announced(written: Written, told: Watcher | None) -> Written:
    if told is not None:
        told(written.tokens)
    return written


for _config, _model in ((AutoregressiveConfig, AutoregressiveLM), (MaskedDiffusionConfig, MaskedDiffusionLM)):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
