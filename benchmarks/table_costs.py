"""What a head of the table costs, where no other benchmark says so: size, FLOPs, training and decoding speed.

Training: CPU time of a step on the trunk's cached states, optimizer included, all heads taking turns in one process.
Decoding: trained trunk and head, direct and verified by the block rule, at batch 1, 8 and 32; interleaved with the
trunk alone, one thread.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from benchmarks.cells import cell
from benchmarks.costs import cpu_seconds
from benchmarks.head_rates import BLOCKS
from benchmarks.heads import text_config
from eval.block_records import flops
from eval.head_table import BATCHES
from eval.loading import LoadedRun, load_run
from eval.records import record
from eval.samples import held_out_windows
from eval.speed.decoding import Setting, contenders, measure
from eval.speed.floor import measure_machine
from training.config import RunConfig, load_preset, override, to_dict
from training.hardware import resolve_precision
from training.loop import train
from training.mtp_task import build

RESULTS = Path(__file__).parent / "results" / "table"
PROMPT, NEW, ROUNDS = 128, 64, 15
VERIFY = ("block",)


def training_cell(
    on: str, heads: Sequence[str], seed: int, runs: Path, command: list[str], kept: bool
) -> list[dict[str, Any]]:
    """Of all heads at once. The trunk is trained if it is not there; heads are as they begin."""
    trunk_config, trunk = override(load_preset(f"{on}-trunk"), seed=seed), runs / on / f"trunk-{seed}"
    configs = {head: text_config(on, head, seed, trunk) for head in heads}

    def made() -> list[dict[str, Any]]:
        train(trunk_config, trunk, build)
        records = []
        for head, config in configs.items():
            records += size_records(on, head, config)
        for head, seconds in cpu_seconds(configs, build, on, ROUNDS).items():
            data, training = configs[head].data, configs[head].training
            tokens = training.batch_size * data.length
            contract = {
                "block": max(BLOCKS), "anchor_fraction": configs[head].head.anchor_fraction, "cached_states": True,
                "length": data.length, "batch": training.batch_size, "threads": 1,
            }  # fmt: skip
            records.append(
                record(
                    "train_tokens_per_second", tokens / float(np.median(seconds)), on=on, subject=head, kind="estimate",
                    unit="tokens/s of CPU time", n=len(seconds), contract=contract,
                )
            )  # fmt: skip
        return records

    inputs = {"trunk": to_dict(trunk_config), "heads": {h: stated(c) for h, c in configs.items()}, "rounds": ROUNDS}
    return cell(RESULTS / f"{on}-training-{seed}.json", inputs | {"blocks": list(BLOCKS)}, command, made, kept)


def size_records(on: str, head: str, config: RunConfig) -> list[dict[str, Any]]:
    """Parameters of head and trunk, and their FLOPs, at every K."""
    model: Any = build(config, Accelerator(cpu=True)).model
    run = LoadedRun("", model.eval(), None, head, config.seed, config.training.ema, {})
    sizes = {head: run.head, "trunk": model.trunk}
    records = []
    for block in BLOCKS:
        of_head, of_trunk = flops(run, block)
        for subject, count, unit in ((head, of_head, "FLOP/block"), ("trunk", of_trunk, "FLOP/token")):
            common: dict[str, Any] = {"on": on, "subject": subject, "kind": "exact", "contract": {"block": block}}
            held = sum(p.numel() for p in sizes[subject].parameters())
            records.append(record("parameters", held, unit="parameters", **common))
            records.append(record("flops", count, unit=unit, **common))
    return records


def speed_cell(on: str, head: str, seed: int, runs: Path, command: list[str], kept: bool) -> list[dict[str, Any]]:
    trunk_config, trunk = override(load_preset(f"{on}-trunk"), seed=seed), runs / on / f"trunk-{seed}"
    config = text_config(on, head, seed, trunk)

    def made() -> list[dict[str, Any]]:
        train(trunk_config, trunk, build)
        train(config, runs / on / f"{head}-{seed}", build)
        run = load_run(str(runs / on / f"{head}-{seed}"))
        torch.set_num_threads(1)
        name = resolve_precision("auto", run.model.device)
        run.model.to(getattr(torch, name))
        machine = measure_machine(getattr(torch, name), run.model.device)
        records = []
        for batch in BATCHES:
            prompts = torch.from_numpy(held_out_windows(run, batch, PROMPT))
            setting = Setting(on, batch, PROMPT, NEW, rounds=ROUNDS, prompts=prompts, verify=VERIFY)
            parts = contenders(run.model.trunk, [(run.model, block) for block in BLOCKS], setting, compiled=False)
            records += measure(parts, setting, machine, name, run.model.device)
        return records

    inputs = {
        "trunk": to_dict(trunk_config), "head": stated(config), "blocks": list(BLOCKS), "batches": list(BATCHES),
        "verify": list(VERIFY), "tokens": [PROMPT, NEW], "rounds": ROUNDS,
    }  # fmt: skip
    return cell(RESULTS / f"{on}-{head}-{seed}.json", inputs, command, made, kept)


def stated(config: RunConfig) -> dict[str, Any]:
    """By what its trunk is, not where it lies."""
    return to_dict(override(config, trunk__pretrained="trunk"))
