"""`generate` of a flow language model: a window written as a whole or by blocks, from a prompt, around gaps or from nothing.

    model.generate(prompt_ids, num_steps=4, do_sample=True)
    model.generate(prompt_ids, block_length=8, num_steps=2)                 of a model of blocks, up to its end token
    model.generate(prompt_ids, guidance=2.0, num_steps=8)                   of a model whose prompts were dropped now and then
    model.generate(window_ids, known=mask, num_steps=4)                     infilling: mask is True where ids stand
    model.generate(prompt_ids, streamer=TextDiffusionStreamer(tokenizer))   drafts as they are refined

A model of windows has no law for shorter ones: the whole window is written, and cut where a row ends; one of blocks writes
as many as are asked for or needed. Seeded by torch's
own generator; `writing.write` takes addressed noise.
"""

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import ModelOutput

from flowlm.pyramid import ORDERS, Order
from flowlm.token_map import Known
from flowlm.writing import Written, last_known
from flowmap.rng import Rng
from flowmap.samplers import SAMPLERS
from flowmap.warp import Warp

NOT_DONE = {
    "num_beams": 1, "repetition_penalty": 1, "guidance_scale": 1, "penalty_alpha": 0, "min_new_tokens": 0,
    "max_length": None, "min_length": 0,
}  # fmt: skip
"""What transformers' configuration offers, is not done here and so is refused, by its neutral value."""


class FlowGenerationConfig(GenerationConfig):
    """num_steps: refinement steps, the draw of the tokens being the last. sampler: one of `samplers`, default the first. do_sample,
    temperature, top_k, top_p: of that last softmax; without do_sample its likeliest tokens. max_new_tokens: of the window
    behind the last known token, default all of it. What only some models have, None being what the model was trained for:
    self_conditioning, two passes of the network a step; block_length, tokens of a block; delay and order, steps between the
    starts of two tokens that have times of their own, 0 being all at once; decoder, softmax or contextual, of whose laws
    do_sample, temperature, top_k and top_p are then, or nearest, which draws nothing; guidance w, away from what it would write without the prompt, at twice the
    calls, 1 being none; grid, even, clock or closing, of the times that steps end at; renoise, of
    the sampler restart, the share of the noise that is fresh, 1 being all; score_temperature, of the softmaxes whose expected codes the jumps head for,
    above 0, 1 being none."""

    samplers: ClassVar[tuple[str, ...]] = tuple(SAMPLERS)
    extras: ClassVar[tuple[str, ...]] = (
        "self_conditioning", "block_length", "delay", "order", "decoder", "guidance", "grid", "renoise",
        "score_temperature",
    )  # fmt: skip
    """Options that only some models have: given on to `write` where they are not None."""

    def __init__(self, **kwargs: Any) -> None:
        self.num_steps: int = kwargs.pop("num_steps", 1)
        self.sampler: str = kwargs.pop("sampler", self.samplers[0])
        self.self_conditioning: bool | None = kwargs.pop("self_conditioning", None)
        self.block_length: int | None = kwargs.pop("block_length", None)
        self.delay: int | None = kwargs.pop("delay", None)
        self.order: Order | None = kwargs.pop("order", None)
        self.decoder: str | None = kwargs.pop("decoder", None)
        self.guidance: float | None = kwargs.pop("guidance", None)
        self.grid: str | None = kwargs.pop("grid", None)
        self.renoise: float | None = kwargs.pop("renoise", None)
        self.score_temperature: float | None = kwargs.pop("score_temperature", None)
        super().__init__(**kwargs)

    def validate(self, *args: Any, **kwargs: Any) -> None:
        if not isinstance(self.num_steps, int) or self.num_steps < 1:
            raise ValueError(f"num_steps {self.num_steps!r}: a text takes a whole number of steps, 1 at least")
        if self.sampler not in self.samplers:
            raise ValueError(f"unknown sampler {self.sampler!r}: known are {', '.join(self.samplers)}")
        if (self.delay is not None and (not isinstance(self.delay, int) or self.delay < 0)) or (
            self.order not in (None, *ORDERS)
        ):
            raise ValueError(
                f"delay {self.delay!r}, {self.order!r}: 0 steps or more, in the order of {', '.join(ORDERS)}"
            )
        if self.guidance is not None and not self.guidance >= 0:
            raise ValueError(f"guidance {self.guidance!r} must be a number of 0 or above; 1 is none")
        super().validate(*args, **kwargs)
        if foreign := sorted(
            n for n in FlowGenerationConfig.extras if getattr(self, n) is not None and n not in self.extras
        ):
            raise ValueError(f"{foreign[0]} is no option of this model: leave it out")
        for name, neutral in NOT_DONE.items():
            if getattr(self, name, None) not in (None, neutral):
                raise ValueError(f"windows from noise have no {name}: leave it out")

    @classmethod
    def from_model_config(cls, model_config: Any) -> "FlowGenerationConfig":
        names = "bos_token_id", "eos_token_id", "pad_token_id"
        return cls(**{name: getattr(model_config, name, None) for name in names})

    @property
    def own_options(self) -> dict[str, Any]:
        return {name: value for name in self.extras if (value := getattr(self, name)) is not None}

    @property
    def warp(self) -> Warp:
        if not self.do_sample:
            return Warp(0.0)
        values = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return Warp(**{name: value for name, value in values.items() if value is not None})


@dataclass
class FlowOutput(ModelOutput):
    """sequences: (batch, length), known tokens included, padded behind each row's end. tokens_per_forward: new tokens of
    all rows over the network calls that each of them took part in, a decoder's own included. nfe: calls of the map by the row
    that took most, num_steps a block for most samplers: what stands before a block is read in the first of them.
    decoder_calls: of a contextual decoder, a small network's; a row's, apart from nfe."""

    sequences: Tensor | None = None
    tokens_per_forward: float | None = None
    nfe: int | None = None
    decoder_calls: int | None = None


class FlowGenerationMixin:
    """What a model of windows adds to a PreTrainedModel to write. Its own is `write`."""

    config: Any
    generation_config: Any
    generation_config_class: Any
    write: Callable[..., Written]
    """(known, rng, *, steps, sampler, warp, watch, told, end, ends): as `writing.write`; end: places from there on are not
    wanted; ends: the tokens a row may stop behind."""

    def grids(self, steps: Sequence[int], sampler: str | None = None) -> tuple[int, ...]:
        """Which of these numbers of steps it can take."""
        return tuple(steps)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        *,
        known: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        attention_mask: Tensor | None = None,
        streamer: Any = None,
        num_return_sequences: int = 1,
        **kwargs: Any,
    ) -> FlowOutput | Tensor:
        """input_ids: (batch, prompt) tokens that the window begins with; with known, (batch, n ≤ length) bool, tokens that
        stand where it is True; None: nothing is. Of each row num_return_sequences are written. kwargs: fields of the
        configuration. attention_mask: what tokenizers give along, of prompts of one length."""
        config: Any = copy.deepcopy(generation_config or self.generation_config)
        if not isinstance(config, self.generation_config_class):
            config = self.generation_config_class.from_dict(config.to_dict())
        if attention_mask is not None and not attention_mask.all():
            raise ValueError(
                "prompts of different lengths: put them into whole windows and say with known where they stand"
            )
        if unknown := config.update(**kwargs):
            raise ValueError(f"generate has no {', '.join(sorted(unknown))}")
        config.validate()
        given = self.canvas(input_ids, known, num_return_sequences)
        if streamer is not None and len(given.tokens) > 1:
            raise ValueError("a streamer shows one row: write one at a time")
        behind = last_known(given.at) + 1
        end, last = self.config.length, int(behind.max())
        if config.max_new_tokens is not None and (end := last + config.max_new_tokens) > self.config.length:
            raise ValueError(
                f"max_new_tokens {config.max_new_tokens} behind {last} known: windows have {self.config.length} tokens"
            )
        rows = torch.arange(len(given.tokens), device=given.tokens.device)
        open_ = torch.arange(end, device=rows.device) >= behind[:, None]
        stream = (
            None if streamer is None else Stream(streamer, given, end, lambda tokens: self.cut(tokens, open_, config))
        )
        out = self.write(
            given, Rng(int(torch.randint(2**31, ())), rows), end=end, ends=self.stops(config), steps=config.num_steps,
            sampler=config.sampler, warp=config.warp, **config.own_options,
            watch=None if stream is None else stream.draft, told=None if stream is None else stream.settled,
        )  # fmt: skip
        sequences, kept = self.cut(out.tokens[:, :end], open_, config)
        if streamer is not None:
            streamer.end()
        if not config.return_dict_in_generate:
            return sequences
        calls = max(1, int((out.calls + out.decoder_calls).sum()))
        per_call = int((kept & ~given.at[:, :end]).sum()) / calls
        return FlowOutput(
            sequences=sequences, tokens_per_forward=per_call, nfe=out.nfe, decoder_calls=out.decoder_calls
        )

    def canvas(self, ids: Tensor | None, known: Tensor | None, rows: int) -> Known:
        """The window with what is known in it, so many times each row."""
        if rows < 1:
            raise ValueError(f"num_return_sequences {rows} must be 1 or above")
        device = next(self.parameters()).device  # type: ignore[attr-defined]
        if ids is None:
            if known is not None:
                raise ValueError("known says where input_ids stand: give them too")
            ids = torch.zeros(1, 0, dtype=torch.long)
        if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
            raise ValueError("input_ids must be a tensor of whole numbers, (batch, tokens)")
        wrong = ids[(ids < 0) | (ids >= self.config.vocab_size)]
        if len(wrong):
            raise ValueError(f"input_ids hold {int(wrong[0])}: tokens are 0 and above, below {self.config.vocab_size}")
        at = torch.ones_like(ids, dtype=torch.bool) if known is None else known.bool()
        if at.shape != ids.shape:
            raise ValueError(f"known is {tuple(at.shape)} and input_ids {tuple(ids.shape)}: one place for each token")
        ids, at = (part.to(device).repeat_interleave(rows, 0) for part in (ids, at))
        missing = self.config.length - ids.shape[1]
        if missing < 0:
            raise ValueError(f"{ids.shape[1]} tokens given: this model writes windows of {self.config.length}")
        return Known(torch.nn.functional.pad(ids, (0, missing)), torch.nn.functional.pad(at, (0, missing)))

    @staticmethod
    def stops(config: FlowGenerationConfig) -> list[int]:
        """Its end tokens."""
        return [] if config.eos_token_id is None else torch.as_tensor(config.eos_token_id).reshape(-1).tolist()

    def cut(self, tokens: Tensor, open_: Tensor, config: FlowGenerationConfig) -> tuple[Tensor, Tensor]:
        """Rows up to their first end token where they are open, (batch, n or more) bool, padding behind it; and what is
        kept."""
        stops = self.stops(config)
        ended = torch.isin(tokens, torch.tensor(stops, device=tokens.device)) & open_[:, : tokens.shape[1]]
        kept = ended.cumsum(1) - ended.long() == 0
        pad = config.pad_token_id if config.pad_token_id is not None else next(iter(stops), 0)
        return tokens.masked_fill(~kept, pad), kept

    def adjust_generation_fn(self, config: Any, from_auto: Any, from_pipeline: Any, path: Any, **where: Any) -> None:
        """What from_pretrained asks for: the configuration that was saved beside the weights, if one was."""
        if config is not None:
            self.generation_config = self.generation_config_class.from_dict(config.to_dict())
            return
        where.pop("trust_remote_code", None)
        with contextlib.suppress(OSError):
            self.generation_config = self.generation_config_class.from_pretrained(path, **where)


class Stream:
    """One row told to a streamer as it is written: first what it begins with, then drafts of what is not settled yet, and
    what is. cut: tokens → (tokens, kept)."""

    def __init__(self, streamer: Any, given: Known, end: int, cut: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self.streamer, self.end, self.cut = streamer, end, cut
        self.shown = int(given.at[0, :end].long().cumprod(0).sum())
        streamer.put(given.tokens[:, : self.shown].cpu())

    def draft(self, tokens: Tensor) -> None:
        if hasattr(self.streamer, "put_draft"):
            self.streamer.put_draft(value=tokens[:, self.shown : self.end].cpu())

    def settled(self, tokens: Tensor) -> None:
        told, kept = self.cut(tokens[:, : self.end])
        self.streamer.put(told[0, self.shown : int(kept.sum())].cpu())
        self.shown = max(self.shown, int(kept.sum()))
