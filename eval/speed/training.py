"""The training step of trunk plus head against the trunk's own: time over time, beside FLOPs over FLOPs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from eval.records import record
from eval.speed.floor import Machine, flop_counter
from eval.speed.memory import peak_memory
from eval.speed.timing import interleaved, load_average, pair_ratio
from eval.tables import print_row
from flowmap.rng import Rng
from mtp.batch import TokenBatch
from mtp.model import MTPForCausalLM
from mtp.objective import JointCrossEntropy
from training.hardware import keep_freed_memory


@dataclass(frozen=True)
class Step:
    """One optimizer step on random tokens. flops: of its matrix products."""

    subject: str
    block: int
    anchor_fraction: float
    run: Callable[[], object]
    flops: int


def measure_training(
    trunk: Any,
    heads: Sequence[tuple[MTPForCausalLM, int]],
    on: str,
    dtype: str,
    args: Any,
    machine: Machine,
    length: int = 512,
    batch: int = 4,
) -> list[dict[str, Any]]:
    """Trunk alone, then each head at every position and at a quarter of them. Weights are fp32; dtype is
    the autocast's. A head is trained for the whole block it was built for. Memory is kept as `leaplm train` keeps it."""
    keep_freed_memory()
    trunk.float().train()
    trunk_optimizer = torch.optim.AdamW(trunk.parameters(), lr=1e-6, fused=True)
    whole = {id(model): model for model, _ in heads}.values()
    steps = [_step(MTPForCausalLM.from_trunk(trunk), 1.0, trunk_optimizer, (batch, length), dtype)]
    for model in whole:
        model.float().train()
        steps += [_step(model, fraction, trunk_optimizer, (batch, length), dtype) for fraction in (1.0, 0.25)]
    names = [f"{s.subject} {s.anchor_fraction:g}" for s in steps]
    device = next(trunk.parameters()).device
    for s in steps:
        s.run()  # the optimizer's moments are made at its first step, and are no part of a step's own memory
    peaks = [peak_memory(s.run, device) for s in steps]
    seconds = interleaved(dict(zip(names, (s.run for s in steps), strict=True)), args.rounds, f"{on}, training")
    own = seconds[names[0]]
    records = []
    print_row(f"\n{on}, training step", "tokens/s", "time × trunk", "FLOPs × trunk", "TFLOP/s", "peak share", "MiB")
    for s, name, peak in zip(steps, names, peaks, strict=True):
        slowdown = pair_ratio(seconds[name], own)
        rate = pair_ratio(torch.full((args.rounds,), batch * length).numpy(), seconds[name])
        share = s.flops * rate.value / batch / length / machine.throughput
        contract = {
            "block": s.block, "anchor_fraction": s.anchor_fraction, "length": length, "batch": batch, "dtype": dtype,
        }  # fmt: skip
        common: dict[str, Any] = {
            "on": on, "subject": s.subject, "kind": "estimate", "n": args.rounds, "load_average": load_average(),
            "contract": contract,
        }  # fmt: skip
        interval: dict[str, Any] = {"interval": [rate.low, rate.high], "stable": rate.stable}
        ratio: dict[str, Any] = {"interval": [1 / slowdown.high, 1 / slowdown.low], "stable": slowdown.stable}
        flops_ratio = s.flops / steps[0].flops
        records += [
            record("train_tokens_per_second", rate.value, unit="tokens/s", **interval, **common),
            record("speedup", 1 / slowdown.value, unit="× trunk", **ratio, flops_ratio=flops_ratio, **common),
            record("flops", s.flops / batch / length, unit="FLOP/token, forward and backward", **common),
            record("mfu", share, unit="fraction of measured peak", **common),
        ]
        if peak is not None:
            unit = "bytes above weights and moments"
            records.append(record("peak_memory", peak, unit=unit, **common))
        print_row(
            f"{s.subject} {'' if s.anchor_fraction == 1 else '1/4'}",
            f"{rate.value:.0f}",
            f"{slowdown.value:.2f} ({slowdown.low:.2f}–{slowdown.high:.2f})",
            f"{flops_ratio:.2f}",
            f"{s.flops * rate.value / batch / length / 1e12:.2f}",
            f"{share:.0%}",
            "–" if peak is None else f"{peak / 2**20:.0f}",
        )
    return records


def _step(
    model: MTPForCausalLM, fraction: float, trunk_optimizer: torch.optim.Optimizer, size: tuple[int, int], dtype: str
) -> Step:
    device = next(model.parameters()).device
    block = model.config.block_size
    batch_size, length = size
    vocabulary = model.get_output_embeddings().weight.shape[0]
    tokens = torch.randint(vocabulary, (batch_size, length + block), device=device)
    batch = TokenBatch(tokens, torch.zeros_like(tokens), torch.ones_like(tokens, dtype=torch.bool), length)
    objective = JointCrossEntropy(anchor_fraction=fraction)
    optimizers = [trunk_optimizer]
    if model.head is not None:
        optimizers.append(torch.optim.AdamW(model.head.parameters(), lr=1e-6, fused=True))
    rng = Rng(0, torch.arange(batch_size, device=device))

    def gradients() -> None:
        with torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32"):
            loss = objective(model, batch, rng=rng, step=0)
        (loss.sum / loss.count).backward()

    def run() -> None:
        gradients()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    with flop_counter() as flops:
        gradients()
    for optimizer in optimizers:
        optimizer.zero_grad()
    return Step(model.config.head or "trunk", block, fraction, run, flops.get_total_flops())
