"""A flow language model as a transformers model: codes of tokens, the shared backbone, the two-time map around it."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from flowlm.blocks import cut_to_blocks
from flowlm.generation import FlowGenerationConfig, FlowGenerationMixin
from flowlm.pyramid import Order
from flowlm.token_map import Known, TokenContext, TokenMap
from flowlm.writing import Written, write
from flowmap.backbone import Backbone, BackboneConfig
from flowmap.codebook import CODEBOOKS, Bits, Codebook, Embedding, OneHot, Table
from flowmap.naming import is_own, own_class
from flowmap.rng import Rng
from flowmap.sphere import TOKEN_PATHS

NOISES = ("sample", "block", "token")


class WindowConfig(PreTrainedConfig):
    """What models of windows share. length: tokens of a window. codebook: one-hot, embedding, bits; state_size: d of learned
    codes. backbone: BackboneConfig's fields. block_lengths: those of the blocks that it was trained to write a window in;
    none: a window is written as a whole."""

    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    vocab_size: int = 2
    length: int = 8
    codebook: str = "one-hot"
    state_size: int = 32
    backbone: dict[str, Any] | None = None
    block_lengths: list[int] | None = None


class FlowLMConfig(WindowConfig):
    """codebook: sphere and table too; state_size: of a table's codes too, whose length is √d, as long as the noise. path:
    linear, cosine, slerp. prior: add the matched filter to the logits; t_min: the least time that was trained.
    self_conditioning: the share of samples that were trained by two passes a step, 0 where the network has no such input.
    noise: what had a time of its own in training, a whole sample, a block or a token. causal: no token looks at those behind it."""

    model_type = "leaplm-flow"

    path: str = "linear"
    prior: bool = False
    t_min: float | int = 1e-3
    self_conditioning: float | int = 0
    noise: str = "sample"
    causal: bool = False


class FlowLM(PreTrainedModel, FlowGenerationMixin):
    """`map` is the TokenMap on states (batch, length, state size)."""

    config_class = FlowLMConfig
    generation_config_class = FlowGenerationConfig
    base_model_prefix = ""

    def __init__(self, config: FlowLMConfig) -> None:
        super().__init__(config)
        check_path(config)
        check_loop(config)
        codebook = make_codebook(config.codebook, config.vocab_size, config.state_size)
        fields: dict[str, Any] = {
            "positions": "rope",
            "read_bias": 1.0,
            "self_conditioning": config.self_conditioning > 0,
        }
        fields |= config.backbone or {}
        backbone = Backbone(
            BackboneConfig(
                state_size=codebook.state_size,
                output_size=config.vocab_size,
                max_positions=config.length,
                **fields,
            )
        )
        scale = config.vocab_size**-0.5 if isinstance(codebook, OneHot) else 1.0  # of one coordinate of a code
        path = TOKEN_PATHS[config.path]()
        self.map = TokenMap(backbone, path, codebook, scale, config.prior, config.t_min, config.causal)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The backbone and the codes have drawn their own."""

    def forward(
        self, x_t: Tensor, t: Tensor, s: Tensor, context: TokenContext | None = None, self_cond: Tensor | None = None
    ) -> Tensor:
        """Logits of p_{t→s}(x_t), (batch, length, vocab_size). self_cond: an estimate of the clean codes, like x_t."""
        return self.map.logits(x_t, t, s, context, self_cond)

    def write(
        self, known: Known, rng: Rng, *, end: int | None = None, block_length: int | None = None, delay: int | None = None,
        order: Order | None = None, self_conditioning: bool | None = None, **how: Any,
    ) -> Written:  # fmt: skip
        """known: of whole windows. end: places from there on need not be written. block_length: default the longest that it
        was trained for. self_conditioning: default, if the model was trained so. The rest as in `writing.write`. → windows, or as many of their blocks as reach the end."""
        config, delay, order = self.config, delay or 0, order or "left-to-right"
        if delay and config.noise != "token":
            raise ValueError(f"delay {delay} needs a model whose tokens had times of their own in training: leave it 0")
        if config.causal and order != "left-to-right":
            raise ValueError(f"order {order}: a causal network writes from left to right")
        size, known = cut_to_blocks(known, config.block_lengths, block_length, end)
        twice = config.self_conditioning > 0 if self_conditioning is None else self_conditioning
        how |= {
            "self_conditioning": twice,
            "delay": delay,
            "order": order,
            "block": size if config.block_lengths else None,
        }
        return write(self.map, self.blank_states(known.tokens), rng, known=known, **how)

    def blank_states(self, tokens: Tensor) -> Tensor:
        """(batch, length) → zeros of the shape of their states, in fp32."""
        return torch.zeros(*tokens.shape, self.map.codebook.state_size, device=tokens.device)


def check_loop(config: FlowLMConfig) -> None:
    """Whether what is said of blocks and times goes together."""
    if config.noise not in NOISES:
        raise ValueError(f"unknown noise {config.noise!r}: one time for each {', '.join(NOISES)}")
    for block in config.block_lengths or ():
        if block < 1 or config.length % block:
            fitting = [n for n in range(1, config.length + 1) if config.length % n == 0]
            raise ValueError(f"block length {block} does not divide a window of {config.length}: {fitting} do")
    if config.noise == "block" and not config.block_lengths:
        raise ValueError("a time for each block needs block lengths")
    if config.causal and config.block_lengths:
        raise ValueError("causal and block lengths exclude each other: blocks of 1 are read from left to right")


def check_path(config: FlowLMConfig) -> None:
    if config.path not in TOKEN_PATHS:
        raise ValueError(f"unknown path {config.path!r}: known are {', '.join(TOKEN_PATHS)}")
    if config.codebook == "sphere" and config.path != "slerp":
        raise ValueError(f"codebook sphere walks along great circles, not a {config.path} path: set the path slerp")
    if config.codebook == "one-hot" and config.path == "slerp":
        raise ValueError(
            "path slerp joins codes as long as the noise, and one-hot codes are not: set the codebook sphere"
        )


def make_codebook(kind: str, size: int, state_size: int) -> Codebook:
    """size: V. state_size: d of the codes that have one. kind: one of ours, or module:Class, made of both sizes."""
    if kind == "one-hot":
        return OneHot(size)
    if kind == "bits":
        return Bits(size)
    if kind == "table":  # zeros to be filled by what was saved, or by training
        return Table(torch.zeros(size, state_size))
    if kind in ("embedding", "sphere"):
        return Embedding(size, state_size, norm=state_size**0.5)
    if is_own(kind):
        return own_class(kind, Codebook)(size, state_size)
    raise ValueError(f"unknown codebook {kind!r}: known are {', '.join(CODEBOOKS)}, and your own as module:Class")


AutoConfig.register(FlowLMConfig.model_type, FlowLMConfig)
AutoModel.register(FlowLMConfig, FlowLM)
