"""A flow language model as a transformers model: codes of tokens, the shared backbone, the two-time map around it."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from flowlm.generation import FlowGenerationConfig, FlowGenerationMixin
from flowlm.pyramid import Order
from flowlm.token_map import Known, TokenContext, TokenMap
from flowlm.writing import Written, write
from flowmap.backbone import Backbone, BackboneConfig
from flowmap.codebook import Bits, Codebook, Embedding, OneHot
from flowmap.path import PATHS
from flowmap.rng import Rng

NOISES = ("sample", "block", "token")


class FlowLMConfig(PreTrainedConfig):
    """length: tokens of a window. codebook: one-hot, embedding, bits; state_size: d of learned codes, whose length is √d, as
    long as the noise. prior: add the matched filter to the logits; t_min: the least time that was trained. backbone:
    BackboneConfig's fields. block_lengths: those of the blocks that it was trained to write a window in; none: a window is
    written as a whole. noise: what had a time of its own in training, a whole sample, a block or a token. causal: no token
    looks at those behind it."""

    model_type = "leaplm-flow"

    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    vocab_size: int = 2
    length: int = 8
    codebook: str = "one-hot"
    state_size: int = 32
    path: str = "linear"
    prior: bool = False
    t_min: float | int = 1e-3
    backbone: dict[str, Any] | None = None
    block_lengths: list[int] | None = None
    noise: str = "sample"
    causal: bool = False


class FlowLM(PreTrainedModel, FlowGenerationMixin):
    """`map` is the TokenMap on states (batch, length, state size)."""

    config_class = FlowLMConfig
    generation_config_class = FlowGenerationConfig
    base_model_prefix = ""

    def __init__(self, config: FlowLMConfig) -> None:
        super().__init__(config)
        check_loop(config)
        codebook = make_codebook(config)
        fields = {"positions": "rope", **(config.backbone or {})}
        if config.path not in PATHS:
            raise ValueError(f"unknown path {config.path!r}: known are {', '.join(PATHS)}")
        backbone = Backbone(
            BackboneConfig(
                state_size=codebook.state_size, output_size=config.vocab_size, max_positions=config.length, **fields
            )
        )
        scale = config.vocab_size**-0.5 if isinstance(codebook, OneHot) else 1.0  # of one coordinate of a code
        self.map = TokenMap(backbone, PATHS[config.path](), codebook, scale, config.prior, config.t_min, config.causal)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The backbone and the codes have drawn their own."""

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, context: TokenContext | None = None) -> Tensor:
        """Logits of p_{t→s}(x_t), (batch, length, vocab_size)."""
        return self.map.logits(x_t, t, s, context)

    def write(
        self, known: Known, rng: Rng, *, end: int | None = None, block_length: int | None = None, delay: int = 0,
        order: Order = "left-to-right", **how: Any,
    ) -> Written:  # fmt: skip
        """known: of whole windows. end: places from there on need not be written. block_length: default the longest that it
        was trained for. The rest as in `writing.write`. → windows, or as many of their blocks as reach the end."""
        config = self.config
        trained = config.block_lengths or [config.length]
        if block_length is not None and block_length not in trained:
            raise ValueError(f"block length {block_length}: this model was trained with {', '.join(map(str, trained))}")
        if delay and config.noise != "token":
            raise ValueError(f"delay {delay} needs a model whose tokens had times of their own in training: leave it 0")
        if config.causal and order != "left-to-right":
            raise ValueError(f"order {order}: a causal network writes from left to right")
        size = block_length or max(trained)
        known = known[:, : -(-(end or config.length) // size) * size]
        if unseen(known.at, size):
            raise ValueError(
                f"blocks of {size} are written from left to right and see nothing of what is known behind them: take longer ones"
            )
        how |= {"delay": delay, "order": order, "block": size if config.block_lengths else None}
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


def make_codebook(config: FlowLMConfig) -> Codebook:
    kind = config.codebook
    if kind == "one-hot":
        return OneHot(config.vocab_size)
    if kind == "bits":
        return Bits(config.vocab_size)
    if kind == "embedding":
        return Embedding(config.vocab_size, config.state_size, norm=config.state_size**0.5)
    raise ValueError(f"unknown codebook {kind!r}: known are one-hot, embedding, bits")


def unseen(at: Tensor, size: int) -> bool:
    """Whether a row, (batch, n) bool, has known tokens in a block behind one that has to be written."""
    blocks = at.unflatten(1, (-1, size))
    to_write = ~blocks.all(2)
    return bool((blocks.any(2) & (to_write.long().cumsum(1) - to_write.long() > 0)).any())


AutoConfig.register(FlowLMConfig.model_type, FlowLMConfig)
AutoModel.register(FlowLMConfig, FlowLM)
