"""The run of a flow language model or of a baseline of its kind, and many prompts written with it in batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import flowlm
from eval.loading import model_type, run_facts
from flowlm import MODEL_TYPES
from flowlm.token_map import Known
from flowmap.rng import Rng
from flowmap.warp import Warp
from training.data.tokenizer import load_tokenizer
from training.hardware import quiet_libraries
from training.run_dir import model_folder


@dataclass(frozen=True)
class FlowRun:
    """As `loading.LoadedRun`. model: one of flowlm.MODEL_TYPES. subject: the preset's name."""

    name: str
    model: Any
    tokenizer: Any
    subject: str
    train_seed: int | None
    ema: float | None
    config: dict[str, Any]
    folder: str


@dataclass(frozen=True)
class Sampling:
    """How a text is refined. steps: the draw of the tokens is the last. options: of the model's own `write`, such as
    self_conditioning; what is None is left to the model."""

    steps: int = 1
    sampler: str = "pushforward"
    warp: Warp = field(default_factory=Warp)
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def contract(self, run: FlowRun, made: "Rows", batch: int) -> dict[str, Any]:
        """What a record says of it."""
        calls = {"decoder": "contextual", "decoder_calls": made.decoder_calls} if made.decoder_calls else {}
        lengths = run.model.config.block_lengths
        block = {"block": self.options.get("block_length") or max(lengths)} if lengths else {}
        return {
            "steps": self.steps, "nfe": made.nfe, "sampler": self.sampler, "temperature": self.warp.temperature,
            "top_p": self.warp.top_p, "batch": batch, "dtype": "float32", "verify": "none", "ema": run.ema,
            **block, **{name: value for name, value in self.options.items() if name != "block_length"}, **calls,
        }  # fmt: skip


OPTIONS = {
    "block": "block_length", "delay": "delay", "order": "order", "self_conditioning": "self_conditioning",
    "decoder": "decoder", "guidance": "guidance", "grid": "grid", "renoise": "renoise",
    "score_temperature": "score_temperature",
}  # fmt: skip
"""Of a command, by the name that `write` has for each."""
NEUTRAL = {"guidance": 1.0, "renoise": 1.0, "score_temperature": 1.0}
"""What asks for nothing, besides None."""


def samplings(
    run: FlowRun,
    steps: Sequence[int],
    sampler: str | None = None,
    warp: Warp | None = None,
    seed: int = 0,
    asked: Any = None,
) -> list[Sampling]:
    """One for each number of steps that the model can take. sampler and grid: default those that it was saved with. asked: has OPTIONS, None where
    nothing was asked for."""
    told = {
        own: value
        for name, own in OPTIONS.items()
        if (value := getattr(asked, name, None)) not in (None, NEUTRAL.get(name))
    }
    if "delay" not in told and (grid := grid_of(run)):
        told.setdefault("grid", grid)
    extras = run.model.generation_config_class.extras
    if "block_length" in told and not run.model.config.block_lengths:
        raise ValueError(f"{run.name} writes whole windows: leave --block out, and set --steps")
    if unknown := sorted(set(told) - set(extras)):
        raise ValueError(f"--{unknown[0].replace('_', '-')}: {run.name} has no such option, leave it out")
    samplers = run.model.generation_config_class.samplers
    sampler = sampler or run.model.generation_config.sampler
    if sampler not in samplers:
        raise ValueError(f"--sampler {sampler}: {run.name} knows {', '.join(samplers)}")
    return [Sampling(n, sampler, warp or Warp(), seed, told) for n in run.model.grids(steps, sampler)]


def grid_of(run: FlowRun) -> str | None:
    """That of the jumps which its training taught; None: even."""
    return getattr(run.model.generation_config, "grid", None)


def load_flow(run: str, device: torch.device | None = None) -> FlowRun:
    quiet_libraries()
    folder, kind = str(model_folder(run)), model_type(run) or ""
    if kind not in MODEL_TYPES:
        raise ValueError(f"{run} holds a {kind} model: known are {', '.join(MODEL_TYPES)}")
    try:
        model: Any = getattr(flowlm, MODEL_TYPES[kind]).from_pretrained(folder, dtype=torch.float32)
    except Exception as error:  # a broken file fails in as many ways as there are formats
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{run} did not load: {first_line}") from error
    model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    config, threads = run_facts(run)
    if threads:
        torch.set_num_threads(threads)
    subject = (config.get("flow") or {}).get("name", "flow")
    ema = config.get("training", {}).get("ema")
    return FlowRun(run, model, load_tokenizer(folder), subject, config.get("seed"), ema, config, folder)


@dataclass(frozen=True)
class Rows:
    """which: of the starts. texts: token lists, what was written behind each up to the window's end. drafts: the likeliest
    tokens at every call of the network, the same of each. nfe: calls of the map for a sample; decoder_calls: of a decoder apart
    from it."""

    which: slice
    texts: list[list[int]]
    drafts: list[list[list[int]]]
    nfe: int
    decoder_calls: int = 0


@torch.no_grad()
def write_all(
    run: FlowRun,
    starts: Sequence[list[int]],
    how: Sampling,
    batch: int,
    drafts: bool = False,
    addresses: Tensor | None = None,
) -> Iterator[Rows]:
    """starts: token lists. A row's draw depends on its address alone, default its place in starts, not on the batch."""
    addresses = torch.arange(len(starts)) if addresses is None else addresses
    length, device = run.model.config.length, run.model.device
    if longest := max((len(start) for start in starts if len(start) >= length), default=0):
        raise ValueError(f"a prompt of {longest} tokens leaves nothing of {run.name}'s windows of {length} to write")
    for low in range(0, len(starts), batch):
        part = slice(low, min(low + batch, len(starts)))
        known = _window(starts[part], length, device)
        rng = Rng(how.seed, addresses[part].to(device))
        heard: list[Tensor] = []
        out = run.model.write(
            known, rng, steps=how.steps, sampler=how.sampler, warp=how.warp, watch=heard.append if drafts else None,
            **how.options,
        )  # fmt: skip
        told = [_behind(starts[part], tokens) for tokens in (out.tokens, *heard)]
        yield Rows(part, told[0], told[1:], out.nfe, out.decoder_calls)


def _behind(starts: Sequence[list[int]], tokens: Tensor) -> list[list[int]]:
    return [row[len(start) :] for row, start in zip(tokens.tolist(), starts, strict=True)]


def _window(starts: Sequence[list[int]], length: int, device: torch.device) -> Known:
    tokens: Tensor = torch.tensor([[*start, *[0] * (length - len(start))] for start in starts], device=device)
    at = torch.arange(length, device=device) < torch.tensor([[len(start)] for start in starts], device=device)
    return Known(tokens, at)
