"""Decoding speed: every way to write the same number of tokens, interleaved on one machine.

Prefill is measured apart. The decode time of a contender is that of writing T tokens beyond its first
block less that of writing the first block alone, so every contender pays T/K passes for T tokens (verified: as many as
the tokens kept ask for).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from eval.records import record
from eval.speed.floor import Machine, Work, measure_work
from eval.speed.memory import peak_memory
from eval.speed.timing import interleaved, load_average, pair_ratio
from flowmap.warp import Warp
from mtp.decoding.direct import compiled_step, decode, history_of
from mtp.decoding.speculative import Verified, decode_verified
from mtp.model import MTPForCausalLM


@dataclass(frozen=True)
class Contender:
    """write: number of new tokens → does it. block: tokens that a pass draws or judges. work: of one pass beyond the
    prompt. committed: tokens that a pass adds, default the block. more: of the contract."""

    subject: str
    block: int
    write: Callable[[int], object]
    work: Work
    more: dict[str, Any]
    verify: str = "none"
    committed: float | None = None

    @property
    def name(self) -> str:
        size = ["K=" + str(self.block)] if self.block > 1 else []
        return " ".join([self.subject, *size, *(["compiled"] if "compiled" in self.more else []), *self._rule()])

    def _rule(self) -> list[str]:
        return [] if self.verify == "none" or self.subject == "prompt-lookup" else [self.verify]


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
    verify: Sequence[str] = ()
    """rules to decode with besides direct decoding"""
    acceptance: Sequence[dict[str, Any]] = ()
    """records of `leaplm accept` whose accepted tokens are replayed, where the weights measured here draft nothing"""


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
        found.append(
            Contender("prompt-lookup", 1, _generate(trunk, ids, setting, lookup=4), found[0].work, {}, "token")
        )
    for model, block in heads:
        work = pass_work(model, block, setting)
        found.append(Contender(str(model.config.head), block, direct(model, block), work, {}))
        if compiled:
            step = compiled_step(model)
            write = direct(model, block, step_states=step)
            found.append(Contender(str(model.config.head), block, write, work, {"compiled": True}))
        found += [_verified(model, block, rule, ids, warp, setting) for rule in setting.verify]
    return found


def _verified(
    model: MTPForCausalLM, block: int, rule: str, ids: torch.Tensor, warp: Warp, setting: Setting
) -> Contender:
    """All the work of a draft and its judgement, with the tokens that the rule keeps, or those replayed."""
    subject, replay = str(model.config.head), None
    if setting.acceptance:
        shares = torch.tensor(conditional(setting.acceptance, subject, block, rule, setting.temperature))
        uniform = torch.rand(setting.batch, setting.new + block, block - 1, generator=torch.Generator().manual_seed(0))
        replay = (uniform < shares).long().cumprod(-1).sum(-1).to(ids.device)

    def write(new: int) -> Verified:
        return decode_verified(model, ids, max_new_tokens=new, warp=warp, block_size=block, verify=rule, replay=replay)

    accepted = write(setting.new).accepted_length
    more = {"accepted_length": round(accepted, 3), "replayed": replay is not None}
    return Contender(subject, block, write, pass_work(model, block, setting, judged=True), more, rule, accepted)


def conditional(
    records: Sequence[dict[str, Any]], subject: str, block: int, rule: str, temperature: float
) -> list[float]:
    """That head's conditional acceptance of positions 2..K, 0 where no pass came so far; means over seeds."""
    wanted = {"block": block, "verify": rule, "temperature": temperature, "top_p": 1.0, "threshold": None}
    found: dict[int, list[float]] = {}
    for r in records:
        alike = all(r["contract"].get(key) == value for key, value in wanted.items())
        if alike and r["metric"] == "conditional_acceptance" and r["subject"] == subject:
            found.setdefault(r["position"], []).append(r["value"])
    if not found:
        raise ValueError(f"no acceptance of {subject} with K = {block}, rule {rule}, temperature {temperature:g}")
    return [sum(v) / len(v) if (v := found.get(k)) else 0.0 for k in range(2, block + 1)]


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


def pass_work(model: MTPForCausalLM, block: int, setting: Setting, judged: bool = False) -> Work:
    """Matrix products of one pass after the prompt: trunk on the block just written, head on the next. judged: the
    trunk's logits of every token of the block too."""
    device = next(model.parameters()).device
    ids = torch.zeros(setting.batch, setting.prompt, dtype=torch.int64, device=device)
    with torch.no_grad():
        states, cache = model.states(ids, use_cache=True)
        noise = torch.full((setting.batch, block), 0.5, device=device)
        history = history_of(model, setting.batch, setting.prompt + block)
        places = torch.arange(setting.prompt + block, device=device).expand(setting.batch, -1)
        if history is not None and model.head is not None:
            history.add(ids, states, places[:, : setting.prompt])
            past = history.at(places[:, setting.prompt - 1])
            model.head.sample(model.context(states[:, -1], past), Warp(), noise=noise, block_size=block)

        def one_pass() -> None:
            hidden, _ = model.states(ids[:, :block], past_key_values=cache, use_cache=True)
            if history is not None:
                history.add(ids[:, :block], hidden, places[:, -block:])
            context = model.context(hidden[:, -1], history and history.at(places[:, -1]))
            if judged:
                model.context(hidden.flatten(0, 1)).first_logits()
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
        beside: dict[str, Any] = {}
        if c.subject == "trunk" and "transformers" in decoding:  # our loop against theirs, of the same rounds
            ratio = pair_ratio(decoding["transformers"], decoding[c.name])
            beside = {"times_transformers": ratio.value, "times_transformers_interval": [ratio.low, ratio.high]}
        committed = c.committed or c.block
        passes = setting.new / committed
        floor = machine.seconds(c.work) * passes / (setting.batch * setting.new)
        contract = {
            "block": c.block, "temperature": setting.temperature, "top_p": 1.0, "batch": setting.batch, "dtype": dtype,
            "prompt": setting.prompt, "prompts": "random tokens" if setting.prompts is None else "held-out text", "new": setting.new, "verify": c.verify,
            "static_cache": c.subject not in ("transformers", "prompt-lookup"), **c.more,
        }  # fmt: skip
        common: dict[str, Any] = {
            "on": setting.on, "subject": c.subject, "kind": "estimate", "n": setting.rounds, "load_average": load,
            "contract": contract,
        }  # fmt: skip
        prefill = pair_ratio(seconds[f"{c.name}, short"], torch.ones(setting.rounds).numpy())
        floors: dict[str, Any] = {
            "floor_bytes": c.work.bytes / committed / setting.batch,
            "floor_flops": c.work.flops / committed / setting.batch,
            "floor_share": floor * rate.value,
        }
        for metric, ratio, unit, more in (
            ("tokens_per_second", rate, "tokens/s", floors),
            ("speedup", gain, "× trunk", beside),
            ("latency", prefill, "s, prompt and first block", {}),
        ):
            interval: dict[str, Any] = {"interval": [ratio.low, ratio.high], "stable": ratio.stable}
            records.append(record(metric, ratio.value, unit=unit, **interval, **common, **more))
        if (peak := peaks[c.name]) is not None:
            records.append(record("peak_memory", peak, unit="bytes above the weights", **common))
    return records
