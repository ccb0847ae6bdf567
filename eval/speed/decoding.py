"""Decoding speed: every way to write the same number of tokens, interleaved on one machine.

Prefill is measured apart. The decode time of a contender is that of writing T tokens beyond its first
block less that of writing the first block alone, so every contender pays T/K passes for T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from eval.records import record
from eval.speed.floor import Machine, Work, measure_work
from eval.speed.memory import peak_memory
from eval.speed.timing import interleaved, load_average, pair_ratio
from mtp.decoding.direct import compiled_step, decode
from mtp.decoding.warp import Warp
from mtp.model import MTPForCausalLM


@dataclass(frozen=True)
class Contender:
    """write: number of new tokens → does it. block: tokens a pass. work: of one pass beyond the prompt."""

    subject: str
    block: int
    write: Callable[[int], object]
    work: Work
    more: dict[str, Any]

    @property
    def name(self) -> str:
        return " ".join([self.subject, *(["K=" + str(self.block)] if self.block > 1 else []), *self.more])


@dataclass(frozen=True)
class Setting:
    """prompt, new: tokens. rounds: interleaved. on: what the records name as measured. prompts: (batch, prompt)
    token ids of real text, which prompt lookup lives on; None: random tokens."""

    on: str
    batch: int
    prompt: int = 128
    new: int = 64
    temperature: float = 1.0
    rounds: int = 15
    prompts: torch.Tensor | None = None


def contenders(
    trunk: Any, heads: Sequence[tuple[MTPForCausalLM, int]], setting: Setting, compiled: bool
) -> list[Contender]:
    """trunk: a causal LM of transformers; heads: models on it, each with the block to draw."""
    device = next(trunk.parameters()).device
    vocabulary = trunk.get_output_embeddings().weight.shape[0]
    ids = setting.prompts
    if ids is None:
        ids = torch.randint(vocabulary, (setting.batch, setting.prompt), generator=torch.Generator().manual_seed(0))
    ids = ids.to(device)
    warp = Warp(setting.temperature)

    def direct(model: MTPForCausalLM, block: int, **options: Any) -> Callable[[int], object]:
        return lambda new: decode(model, ids, max_new_tokens=new, warp=warp, block_size=block, **options)

    alone = MTPForCausalLM.from_trunk(trunk)
    found = [Contender("trunk", 1, direct(alone, 1), pass_work(alone, 1, setting), {})]
    if compiled:
        torch.compiler.reset()  # dynamo keeps few shapes of one function, and each setting has its own
        step = compiled_step(alone)
        found.append(Contender("trunk", 1, direct(alone, 1, step_states=step), found[0].work, {"compiled": True}))
    found.append(Contender("transformers", 1, _generate(trunk, ids, setting), found[0].work, {}))
    if setting.batch == 1:
        found.append(Contender("prompt-lookup", 1, _generate(trunk, ids, setting, lookup=4), found[0].work, {}))
    for model, block in heads:
        work = pass_work(model, block, setting)
        found.append(Contender(str(model.config.head), block, direct(model, block), work, {}))
        if compiled:
            step = compiled_step(model)
            write = direct(model, block, step_states=step)
            found.append(Contender(str(model.config.head), block, write, work, {"compiled": True}))
    return found


def _generate(trunk: Any, ids: torch.Tensor, setting: Setting, lookup: int | None = None) -> Callable[[int], object]:
    """transformers' own loop on the same weights, sampling the same law."""
    sampling: dict[str, Any] = {"do_sample": False}
    if setting.temperature > 0:
        sampling = {"do_sample": True, "temperature": setting.temperature, "top_k": 0, "top_p": 1.0}
    trunk.generation_config.eos_token_id = None

    def write(new: int) -> object:
        return trunk.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            pad_token_id=0,
            prompt_lookup_num_tokens=lookup,
            **sampling,
        )

    return write


def pass_work(model: MTPForCausalLM, block: int, setting: Setting) -> Work:
    """Matrix products of one pass after the prompt: trunk on the block just written, head on the next."""
    device = next(model.parameters()).device
    ids = torch.zeros(setting.batch, setting.prompt, dtype=torch.int64, device=device)
    with torch.no_grad():
        _, cache = model.states(ids, use_cache=True)
        noise = torch.full((setting.batch, block), 0.5, device=device)

        def one_pass() -> None:
            hidden, _ = model.states(ids[:, :block], past_key_values=cache, use_cache=True)
            context = model.context(hidden[:, -1])
            if model.head is None:
                context.first_logits()
            else:
                model.head.sample(context, Warp(setting.temperature), noise=noise, block_size=block)

        return measure_work(one_pass)


def measure(
    parts: Sequence[Contender],
    setting: Setting,
    machine: Machine,
    dtype: str,
    device: torch.device,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Records: latency of prompt and first block; tokens per second beyond it; speedup over the trunk's own
    loop, of the same rounds; the floor of each; peak memory of prompt and decoding."""
    long = {f"{c.name}, long": (lambda c=c: c.write(setting.new + c.block)) for c in parts}
    short = {f"{c.name}, short": (lambda c=c: c.write(c.block)) for c in parts}
    title = f"{setting.on}, batch {setting.batch}"
    for c in parts:  # what is set up or compiled at first use is no part of decoding
        c.write(c.block)
        c.write(setting.new + c.block)
    peaks = {c.name: peak_memory(lambda c=c: c.write(setting.new + c.block), device) for c in parts}  # type: ignore[misc]
    seconds = interleaved({**long, **short}, setting.rounds, title, quiet)
    decoding = {c.name: seconds[f"{c.name}, long"] - seconds[f"{c.name}, short"] for c in parts}
    load = load_average()
    records = []
    for c in parts:
        rate = pair_ratio(torch.full((setting.rounds,), setting.batch * setting.new).numpy(), decoding[c.name])
        gain = pair_ratio(decoding[parts[0].name], decoding[c.name])
        passes = setting.new / c.block
        floor = machine.seconds(c.work) * passes / (setting.batch * setting.new)
        contract = {
            "block": c.block, "temperature": setting.temperature, "top_p": 1.0, "batch": setting.batch, "dtype": dtype,
            "prompt": setting.prompt, "prompts": "random tokens" if setting.prompts is None else "held-out text", "new": setting.new, "verify": "token" if c.subject == "prompt-lookup" else "none",
            "static_cache": c.subject not in ("transformers", "prompt-lookup"), **c.more,
        }  # fmt: skip
        common: dict[str, Any] = {
            "on": setting.on, "subject": c.subject, "kind": "estimate", "n": setting.rounds, "load_average": load,
            "contract": contract,
        }  # fmt: skip
        prefill = pair_ratio(seconds[f"{c.name}, short"], torch.ones(setting.rounds).numpy())
        floors: dict[str, Any] = {
            "floor_bytes": c.work.bytes / c.block / setting.batch,
            "floor_flops": c.work.flops / c.block / setting.batch,
            "floor_share": floor * rate.value,
        }
        for metric, ratio, unit, more in (
            ("tokens_per_second", rate, "tokens/s", floors),
            ("speedup", gain, "× trunk", {}),
            ("latency", prefill, "s, prompt and first block", {}),
        ):
            interval: dict[str, Any] = {"interval": [ratio.low, ratio.high], "stable": ratio.stable}
            records.append(record(metric, ratio.value, unit=unit, **interval, **common, **more))
        if (peak := peaks[c.name]) is not None:
            records.append(record("peak_memory", peak, unit="bytes above the weights", **common))
    return records
