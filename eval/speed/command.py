"""`leaplm speed`: trunk, transformers and joint heads on the same weights, interleaved."""

from typing import Any

import torch
import yaml

from eval.loading import LoadedRun, load_run
from eval.measuring_commands import BLOCKS
from eval.records import keep_records, read_records, write_records
from eval.samples import held_out_windows
from eval.speed.decoding import Contender, Setting, contenders, measure
from eval.speed.floor import measure_machine
from eval.speed.references import reference_trunk
from eval.speed.training import measure_training
from eval.tables import print_row
from mtp.heads import option_names
from mtp.model import MTPForCausalLM
from training.hardware import resolve_precision

METRICS = ("tokens_per_second", "speedup", "latency", "peak_memory")


def run(args: Any, command: list[str]) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = resolve_precision(args.dtype, device)
    dtype = getattr(torch, name)
    threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    machine = measure_machine(dtype, device)
    print(
        f"{name}; reads {machine.bandwidth / 1e9:.0f} GB/s, multiplies {machine.throughput / 1e12:.2f} TFLOP/s; "
        f"prompt {args.prompt}, {args.new} new tokens, temperature {args.temperature}"
    )
    acceptance = [r for file in args.acceptance for r in read_records(file)]
    records: list[dict[str, Any]] = []
    for on, trunk, heads, run in _subjects(args, dtype, device, threads):
        if args.train:
            records += measure_training(trunk, heads, on, name, args, machine)
            continue
        for batch in args.batch_sizes:
            prompts = run and _prompts(run, batch, args.prompt)
            setting = Setting(
                on, batch, args.prompt, args.new, args.temperature, args.rounds, prompts, args.verify, acceptance
            )
            parts = contenders(trunk, heads, setting, args.compile)
            made = measure(parts, setting, machine, name, device)
            _print(on, batch, parts, made)
            keep_records(on, f"speed-batch-{batch}", command, made)
            records += made
    if args.json:
        write_records(args.json, command, records)


def _subjects(args: Any, dtype: torch.dtype, device: torch.device, threads: int):
    """(what it is called, the trunk, [(model with a head, block)], the run or None) of every reference and run."""
    options = _options(args)
    for size in args.reference:
        trunk = reference_trunk(size, dtype, device)
        heads = []
        for head in args.heads:
            own = {key: value for key, value in options.items() if key in option_names(head)}
            model: Any = MTPForCausalLM.from_trunk(trunk, head, max(args.blocks or BLOCKS), **own)
            model.to(device, dtype).eval()
            heads += [(model, block) for block in args.blocks or BLOCKS]
        yield size, trunk, heads, None
    for one in args.runs:
        loaded = load_run(one)
        torch.set_num_threads(threads)  # one number for all, not what each was trained with
        model = loaded.model
        model.to(device=device, dtype=dtype)
        for block in args.blocks or ():
            if block > loaded.block_size:
                raise ValueError(
                    f"--blocks {block}: {one} was trained for blocks of at most {loaded.block_size} tokens"
                )
        blocks = [block for block in args.blocks or BLOCKS if block <= loaded.block_size] or [loaded.block_size]
        if args.new % blocks[0]:
            raise ValueError(f"--new {args.new} must be a multiple of {one}'s own block of {blocks[0]}")
        yield one, model.trunk, [(model, block) for block in blocks] if model.head is not None else [], loaded


def _options(args: Any) -> dict[str, Any]:
    """--rank and --options; every one must be of some head that is timed."""
    options = {"rank": args.rank}
    for pair in args.options:
        key, equals, value = pair.partition("=")
        if not equals or not any(key in option_names(head) for head in args.heads):
            raise ValueError(f"--options {pair!r}: want KEY=VALUE, an option of one of {', '.join(args.heads)}")
        options[key] = yaml.safe_load(value)
    return options


def _prompts(run: LoadedRun, batch: int, length: int) -> torch.Tensor | None:
    """Held-out text of what the run was trained on, if that was text."""
    data = run.config.get("data") or {}
    if not data or data.get("suite") or data.get("cases"):
        return None
    return torch.from_numpy(held_out_windows(run, batch, length))


def _print(on: str, batch: int, parts: list[Contender], records: list[dict[str, Any]]) -> None:
    heads = ("tokens/s", "× trunk", "95%", "of the floor", "MB, MFLOP a token", "first block", "peak memory")
    print_row(f"\n{on}, batch {batch}", *heads)
    of = {metric: [r for r in records if r["metric"] == metric] for metric in METRICS}
    peaks: list[Any] = [*of.pop("peak_memory")] or [None] * len(parts)
    for c, rate, gain, latency, peak in zip(parts, *of.values(), peaks, strict=True):
        low, high = gain["interval"]
        print_row(
            c.name,
            f"{rate['value']:.1f}",
            f"{gain['value']:.2f}",
            f"{low:.2f} to {high:.2f}" + ("" if gain["stable"] else " (?)"),
            f"{rate['floor_share']:.0%}",
            f"{rate['floor_bytes'] / 1e6:.1f}, {rate['floor_flops'] / 1e6:.0f}",
            f"{latency['value'] * 1e3:.0f} ms",
            f"{peak['value'] / 2**20:.0f} MiB" if peak else "–",
        )
    for c, gain in zip(parts, of["speedup"], strict=True):
        if "times_transformers" in gain:
            low, high = gain["times_transformers_interval"]
            print(f"{c.name}: {gain['times_transformers']:.2f} ({low:.2f} to {high:.2f}) × transformers' own loop")
    if not all(r["stable"] for r in of["speedup"]):
        print("(?): the interval is wider than ±10%, which is no result: run again on an idle machine")
