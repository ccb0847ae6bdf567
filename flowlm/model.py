"""A flow language model as a transformers model: codes of tokens, the shared backbone, the two-time map around it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from flowlm.blocks import cut_to_blocks
from flowlm.contextual_codes import ContextualCodes, build_encoder
from flowlm.generation import FlowGenerationConfig, FlowGenerationMixin
from flowlm.latent_map import LatentMap
from flowlm.pyramid import Order
from flowlm.rounding import DECODERS, Rounding
from flowlm.token_map import Known, TokenContext, TokenMap
from flowlm.writing import DEAF, Written, write
from flowmap.backbone import Backbone, BackboneConfig
from flowmap.codebook import CODEBOOKS, Bits, Codebook, Embedding, OneHot, Table
from flowmap.naming import is_own, own_class
from flowmap.objectives.tokens.ancestral import snr_time
from flowmap.objectives.tokens.trajectory import CLOSING
from flowmap.rng import Rng
from flowmap.sphere import TOKEN_PATHS
from flowmap.times import interpolate

NOISES = ("sample", "block", "token")
GRIDS = {"even": None, "clock": 1, "closing": CLOSING}
"""Of the times that steps end at → the power of what is left of n even steps that is left of the clock's shares."""


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
    """codebook: sphere, table and contextual too; state_size: of a table's codes too, whose length is √d, as long as the noise.
    encoder: of contextual codes, its configuration. path: linear, cosine, slerp. noise_scale: ν. prior: add the matched filter to the logits; t_min: the least time that was trained.
    self_conditioning: the share of samples that were trained by two passes a step, 0 where the network has no such input. carries: its jumps
    hear, through that input, what the one before them expected. memory: numbers of each state that they leave to the next beside that,
    where a text is written in no more jumps than `jumps`, as many as it was taught to make one after the other.
    noise: what had a time of its own in training, a whole sample, a block or a token. causal: no token looks at those behind it.
    rounding: the depth, width, … of a decoder that writes by `rounding`; none: tokens are drawn from the map's softmax.
    prompt_dropout: the share of samples that were shown nothing of what is known, without which there is no guidance.
    grids: K → S of the ancestral steps that it was trained to make, told where each lands. clock: the times that training looked
    at, as quantiles of their law, evenly from the least to the latest; none: it looked evenly."""

    model_type = "leaplm-flow"

    encoder: dict[str, Any] | None = None
    path: str = "linear"
    noise_scale: float | int = 1
    prior: bool = False
    t_min: float | int = 1e-3
    self_conditioning: float | int = 0
    carries: bool = False
    memory: int = 0
    jumps: int = 1
    noise: str = "sample"
    causal: bool = False
    rounding: dict[str, Any] | None = None
    prompt_dropout: float | int = 0
    grids: dict[str, list[float]] | None = None
    clock: list[float] | None = None


class FlowLM(PreTrainedModel, FlowGenerationMixin):
    """`map` is the TokenMap on states (batch, length, state size)."""

    config_class = FlowLMConfig
    generation_config_class = FlowGenerationConfig
    base_model_prefix = ""

    def __init__(self, config: FlowLMConfig) -> None:
        super().__init__(config)
        check_path(config)
        check_loop(config)
        contextual = config.codebook == "contextual"
        if contextual:
            check_contextual(config)
            encoder = build_encoder(config.encoder or {})
            codebook: Codebook = ContextualCodes(encoder, config.vocab_size, config.state_size)
        else:
            codebook = make_codebook(config.codebook, config.vocab_size, config.state_size)
        fields: dict[str, Any] = {
            "positions": "rope",
            "read_bias": 1.0,
            "self_conditioning": config.self_conditioning > 0 or config.carries,
        }
        fields |= config.backbone or {}
        backbone = Backbone(
            BackboneConfig(
                state_size=codebook.state_size,
                output_size=config.vocab_size + contextual * codebook.state_size + config.memory,
                self_size=codebook.state_size + config.memory if config.memory else None,
                max_positions=config.length,
                **fields,
            )
        )
        scale = config.vocab_size**-0.5 if isinstance(codebook, OneHot) else 1.0  # of one coordinate of a code
        path = TOKEN_PATHS[config.path](config.noise_scale)
        kind = LatentMap if contextual else TokenMap
        self.map: TokenMap = kind(backbone, path, codebook, scale, config.prior, config.t_min, config.causal)
        self.map.carries, self.map.memory, self.map.jumps = config.carries, config.memory, config.jumps
        if config.rounding is not None:
            self.map.rounding = Rounding(make_decoder(backbone.config, config.rounding))
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
        order: Order | None = None, self_conditioning: bool | None = None, decoder: str | None = None,
        guidance: float | None = None, grid: str | None = None, renoise: float | None = None, score_temperature: float | None = None, **how: Any,
    ) -> Written:  # fmt: skip
        """known: of whole windows. end: places from there on need not be written. block_length: default the longest that it
        was trained for. self_conditioning: default, if the model was trained so. decoder: of
        DECODERS, default contextual where the model has one. grid: even (default), steps of one length; clock, steps between which
        training looked equally often; closing, the same growing shorter towards the text. guidance: of a model whose prompts were dropped now and then. renoise: of the sampler restart, default 1. score_temperature: of the codes that jumps head for, default 1. The rest as in `writing.write`. → windows, or as many of their blocks as reach the end."""
        config, delay, order = self.config, delay or 0, order or "left-to-right"
        if delay and config.noise != "token":
            raise ValueError(f"delay {delay} needs a model whose tokens had times of their own in training: leave it 0")
        if config.causal and order != "left-to-right":
            raise ValueError(f"order {order}: a causal network writes from left to right")
        if guidance not in (None, 1) and not config.prompt_dropout:
            raise ValueError(
                f"guidance {guidance}: this model was never trained with its prompts dropped, leave it out"
            )
        if renoise not in (None, 1) and config.path == "slerp":
            raise ValueError(f"renoise {renoise}: on the sphere no share of the noise can be kept, leave it out")
        if config.carries and (self_conditioning or how.get("sampler") in DEAF):
            asked = "self_conditioning" if self_conditioning else f"sampler {how['sampler']}"
            raise ValueError(
                f"{asked}: a jump of this model hears the one before it, and was taught no other: leave it out"
            )
        size, known = cut_to_blocks(known, config.block_lengths, block_length, end)
        twice = config.self_conditioning > 0 if self_conditioning is None else self_conditioning
        how |= {
            "self_conditioning": twice,
            "delay": delay,
            "order": order,
            "guidance": 1.0 if guidance is None else guidance,
            "renoise": 1.0 if renoise is None else renoise,
            "score_temperature": 1.0 if score_temperature is None else score_temperature,
            "decoder": self.decoder(decoder, delay),
            "block": size if config.block_lengths else None,
        }
        if times := self.times_on(grid, how.get("steps", 1)):
            if delay:
                raise ValueError(f"delay {delay}: tokens that start apart take even steps, leave the grid out")
            how["times"] = times
        if config.grids and how.get("sampler") == "ancestral":
            how["times"] = self.trained_times(how.get("steps", 1))
        return write(self.map, self.blank_states(known.tokens), rng, known=known, **how)

    def grids(self, steps: Sequence[int], sampler: str | None = None) -> tuple[int, ...]:
        """Of the steps that its training made alone those, where any is asked for."""
        trained = [n for n in steps if str(n - 1) in (self.config.grids or {})]
        return tuple(trained if trained and sampler == "ancestral" else steps)

    def decoder(self, asked: str | None, delay: int = 0) -> str:
        """The one that writes. delay: tokens that start apart are drawn as they arrive, each from its softmax."""
        has = self.map.rounding is not None
        if asked not in (None, *DECODERS):
            raise ValueError(f"unknown decoder {asked!r}: known are {', '.join(DECODERS)}")
        if asked == "contextual" and (not has or delay):
            why = f"delay {delay} draws tokens as they arrive" if delay else "this model was trained without it"
            raise ValueError(f"decoder contextual: {why}, take softmax")
        if asked == "nearest" and (delay or self.map.finishes):
            why = f"delay {delay} draws tokens as they arrive" if delay else "its codes have no table"
            raise ValueError(f"decoder nearest: {why}, take softmax")
        return asked or ("contextual" if has and not delay else "softmax")

    def times_on(self, grid: str | None, steps: int) -> tuple[float, ...] | None:
        """From pure noise down, one a step; None: evenly spaced."""
        if grid not in (None, *GRIDS):
            raise ValueError(f"unknown grid {grid!r}: known are {', '.join(GRIDS)}")
        if not (power := GRIDS[grid or "even"]):
            return None
        if self.config.clock is None and grid == "clock":
            raise ValueError("grid clock: this model was trained at even times, or before they were kept: take even")
        quantiles = torch.tensor(self.config.clock or [0.0, 1.0], dtype=torch.float64)
        left = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1] ** power
        times = interpolate(left, torch.linspace(0, 1, len(quantiles), dtype=torch.float64), quantiles)
        times = torch.maximum(times, self.config.t_min * (1 + left))  # no two alike where training looked no nearer
        return (1.0, *times[1:].tolist())

    def trained_times(self, steps: int) -> tuple[float, ...]:
        """Those at which so many calls, the last of them reading tokens, were trained."""
        grids = self.config.grids or {}
        if str(steps - 1) not in grids:
            calls = ", ".join(str(int(k) + 1) for k in grids)
            raise ValueError(
                f"{steps} steps: the ancestral sampler of this model was trained for {calls}, the draw counted"
            )
        snr = torch.tensor(grids[str(steps - 1)], dtype=torch.float64)
        return tuple(snr_time(self.map.path, snr).tolist())

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
    if config.rounding is not None and config.block_lengths:
        raise ValueError("the contextual decoder reads whole windows: leave block lengths out, or the decoder")
    if config.prompt_dropout and config.block_lengths:
        raise ValueError("prompt dropout is of whole windows: what stands before a block is always shown")
    if config.causal and config.block_lengths:
        raise ValueError("causal and block lengths exclude each other: blocks of 1 are read from left to right")


def check_path(config: FlowLMConfig) -> None:
    if config.path not in TOKEN_PATHS:
        raise ValueError(f"unknown path {config.path!r}: known are {', '.join(TOKEN_PATHS)}")
    if config.codebook == "sphere" and config.path != "slerp":
        raise ValueError(f"codebook sphere walks along great circles, not a {config.path} path: set the path slerp")
    if config.path == "slerp" and config.noise_scale != 1:
        raise ValueError(
            f"noise_scale {config.noise_scale}: on the path slerp noise is as long as the codes, leave it at 1"
        )
    if config.codebook == "one-hot" and config.path == "slerp":
        raise ValueError(
            "path slerp joins codes as long as the noise, and one-hot codes are not: set the codebook sphere"
        )


def check_contextual(config: FlowLMConfig) -> None:
    """Codes without a table: what has no meaning for them."""
    if not config.encoder:
        raise ValueError("codebook contextual needs an encoder: its configuration in `encoder`")
    if config.prior:
        raise ValueError(
            "codebook contextual has no matched filter, which compares with a table of codes: leave prior out"
        )
    if config.path == "slerp" or config.block_lengths or config.noise != "sample" or config.rounding or config.causal:
        raise ValueError(
            "codebook contextual is of whole windows with one time on the linear or cosine path, read in decode mode: leave path "
            "slerp, block lengths, noise by block or token, causal and the contextual decoder out"
        )


def make_decoder(like: BackboneConfig, fields: dict[str, Any]) -> Backbone:
    """The backbone of a decoder: as the map's, with these fields of its own."""
    return Backbone(replace(like, **{"self_conditioning": True, **fields}))


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
    raise ValueError(
        f"unknown codebook {kind!r}: known are {', '.join(CODEBOOKS)}, contextual, and your own as module:Class"
    )


AutoConfig.register(FlowLMConfig.model_type, FlowLMConfig)
AutoModel.register(FlowLMConfig, FlowLM)
