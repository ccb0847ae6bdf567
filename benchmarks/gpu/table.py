"""Every head on one larger frozen trunk, on one GPU: likelihood, acceptance, size, training and decoding speed.

    python -m benchmarks.gpu.table --prepare .gpu/stdlib.npz          once, where the text lies
    python -m benchmarks.gpu.table --data .gpu/stdlib.npz --out table.json

Ends within --minutes: the trunk trains for a fifth of them, then every head has an equal share of half of them, of which
it trains for half; the rest is decoding, all heads interleaved at K = 4. What finds no time is left out, with a word.
`leaplm report table.json` draws the table. Rates are those of the small trunk scaled by its width over this one's: not
swept here, so all are marked. Imports torch, transformers, safetensors, numpy, tqdm and the packages of this project
that need no more.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.fit import ANCHORS, fit
from benchmarks.gpu.text import beginning, prepare, read
from benchmarks.head_rates import BLOCKS, RATES
from eval.block_records import block_records, law_kind
from eval.head_table import BATCHES, RULES
from eval.likelihood import BlockLikelihood, likelihoods
from eval.records import record, write_records
from eval.speed.decoding import Setting, contenders, measure
from eval.speed.floor import measure_machine
from flowmap.warp import Warp
from mtp.decoding.speculative import decode_verified
from mtp.heads import NAMES
from mtp.model import MTPForCausalLM
from training.data.windows import TextWindows

SPEED_BLOCK, SPEED_NEW = 4, 32
SMALL_WIDTH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", type=Path, help="write the text's tokens to this file and stop")
    parser.add_argument("--name", default="stdlib", help="--prepare: stdlib, or a set of leaplm data list")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--keep", type=int, default=20_000_000, help="--prepare: training tokens kept, of 2 bytes")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--heads", nargs="+", default=NAMES, choices=NAMES, metavar="NAME")
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--steps", type=int, help="of every training, in place of the clock")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64, help="windows of a training step")
    parser.add_argument("--epochs", type=float, default=5.0, help="of the trunk at most, which would overfit")
    parser.add_argument("--scored", type=int, default=32_768, help="held-out tokens")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.prepare:
        return prepare(args.prepare, args.name, args.vocab, args.keep)
    if not args.data or not args.out:
        parser.error("--data and --out are needed, or --prepare")
    torch.set_float32_matmul_precision("high")
    Table(args).run()


@dataclass(frozen=True)
class Made:
    """What eval.block_records asks of a run."""

    model: MTPForCausalLM
    subject: str
    train_seed: int
    name: str = ""
    ema: float | None = None

    @property
    def head(self) -> Any:
        return self.model.head

    @property
    def trunk_seed(self) -> int:
        return self.train_seed

    @property
    def block_size(self) -> int:
        return self.head.block_size


class Table:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.start, self.records = args, time.monotonic(), []
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        name, self.vocab, self.text = read(args.data)
        self.on = f"{name} (trunk {args.depth}×{args.width})"
        self.scored = beginning(self.text["validation"], args.scored)
        self.independent: dict[int, BlockLikelihood] = {}

    def run(self) -> None:
        total = math.inf if self.args.steps else 60 * self.args.minutes
        self.trunk = self.new_trunk(self.start + total / 5)
        self.states = self.read_states()
        models = []
        until = max(time.monotonic(), self.start + 0.22 * total) + total / 2
        for i, head in enumerate(self.args.heads):
            now = time.monotonic()
            if now >= until:
                print(f"no time for {head}", flush=True)
                continue
            models.append(self.one_head(head, now + (until - now) / (len(self.args.heads) - i)))
        del self.states
        self.speeds(models, self.start + 0.97 * total)

    def keep(self, records: Sequence[dict[str, Any]]) -> None:
        """Marked as trained at rates that nobody swept at this width; on disk at once."""
        heads = set(self.args.heads)
        self.records += [{**r, "tuned": False} if r["subject"] in heads else r for r in records]
        write_records(self.args.out, ["python", "-m", "benchmarks.gpu.table", *sys.argv[1:]], self.records)

    def windows(self, reach: int) -> TextWindows:
        return TextWindows(self.text["train"], self.args.length, reach, self.args.batch, self.args.seed)

    def new_trunk(self, until: float) -> Any:
        from transformers import AutoModelForCausalLM, LlamaConfig

        args = self.args
        torch.manual_seed(args.seed)
        config = LlamaConfig(
            vocab_size=self.vocab, hidden_size=args.width, intermediate_size=3 * args.width, num_hidden_layers=args.depth,
            num_attention_heads=max(1, args.width // 64), tie_word_embeddings=True, max_position_embeddings=1024,
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        model: Any = MTPForCausalLM.from_trunk(AutoModelForCausalLM.from_config(config)).to(self.device).train()
        steps = args.steps or args.epochs * len(self.text["train"].tokens) / args.batch / args.length
        rate = fit(model, self.windows(1), 3e-3 * SMALL_WIDTH / args.width, until, steps)
        chain = likelihoods(model.eval(), self.scored, args.length, quiet=True).chain
        common: dict[str, Any] = {"on": self.on, "subject": "trunk", "train_seed": args.seed}
        contract = {"block": 1, "dtype": "float32", "context": args.length}
        nll = chain.sums.sum() / chain.count.sum()
        self.keep([record("nll", nll, kind="exact", unit="nats/token", contract=contract, **common)])
        print(f"trunk: {nll:.3f} nats a token, {rate:,.0f} tokens/s in training", flush=True)
        return model.trunk.requires_grad_(False)

    @torch.no_grad()
    def read_states(self) -> Tensor:
        """(windows, length, d): what the frozen trunk says of the training text, once for all heads."""
        model, args = MTPForCausalLM.from_trunk(self.trunk), self.args
        windows = self.windows(1)
        size = (windows.num_windows, args.length, args.width)
        states = torch.empty(size, device=self.device)
        for low in range(0, windows.num_windows, args.batch):
            part = range(low, min(low + args.batch, windows.num_windows))
            states[part.start : part.stop] = model.states(windows.windows(part).inputs.to(self.device))[0]
        return states

    def one_head(self, head: str, until: float) -> MTPForCausalLM:
        args, now = self.args, time.monotonic()
        torch.manual_seed(args.seed)
        model: Any = MTPForCausalLM.from_trunk(self.trunk, head, max(BLOCKS)).to(self.device).train()
        lr = RATES[head] * SMALL_WIDTH / args.width
        until_half = now + (until - now) / 2
        speed = fit(model, self.windows(max(BLOCKS)), lr, until_half, args.steps or math.inf, self.states)
        run: Any = Made(model.eval(), head, args.seed)
        found = likelihoods(model, self.scored, args.length, BLOCKS, quiet=True)
        common: dict[str, Any] = {"on": self.on, "subject": head, "train_seed": args.seed}
        contract = {"block": max(BLOCKS), "anchor_fraction": ANCHORS, "cached_states": True, "lr": lr}
        made = [record("train_tokens_per_second", speed, kind="estimate", unit="tokens/s", contract=contract, **common)]
        for block, result in found.blocks.items():
            made += block_records(run, result, self.on, self.independent.get(block), args.length)
            direct = found.direct[block].sums.sum() / found.direct[block].count.sum()
            held = {"block": block, "dtype": "float32", "context": args.length}
            made.append(record("direct_nll", direct, unit="nats/token", contract=held, **common, **law_kind(run)))
        if head == "independent":
            self.independent = found.blocks
        made += self.accepted(model, head, until)
        self.keep(made)
        print(f"{head}: direct NLL {direct:.3f} at K = {block}, {speed:,.0f} tokens/s in training", flush=True)
        return model

    def accepted(self, model: MTPForCausalLM, head: str, until: float) -> list[dict[str, Any]]:
        """While there is time; temperature 1 first."""
        made = []
        for temperature, block, rule in product((1.0, 0.0, 0.7), reversed(BLOCKS), RULES):
            if time.monotonic() >= until and (temperature, block) != (1.0, max(BLOCKS)):
                print(f"{head}: acceptance from temperature {temperature:g}, K = {block} on left out", flush=True)
                break
            out = decode_verified(
                model, self.prompts(self.args.prompts, 32), max_new_tokens=self.args.new, verify=rule,
                warp=Warp(temperature), seed=self.args.seed, block_size=block,
            )  # fmt: skip
            contract = {"block": block, "verify": rule, "temperature": temperature, "top_p": 1.0, "new": self.args.new}
            made.append(
                record(
                    "accepted_length", out.accepted_length, on=self.on, subject=head, unit="tokens/pass",
                    kind="estimate", n=self.args.prompts, train_seed=self.args.seed, contract=contract,
                )
            )  # fmt: skip
        return made

    def prompts(self, num: int, length: int) -> Tensor:
        tokens = self.text["validation"].tokens
        starts = np.linspace(0, len(tokens) - length, num).astype(int)
        return torch.from_numpy(np.stack([tokens[s : s + length] for s in starts]).astype(np.int64)).to(self.device)

    def speeds(self, models: Sequence[MTPForCausalLM], until: float) -> None:
        """A batch size that would take as long as the one before begins only if that long is left."""
        for model in models:
            model.to(torch.bfloat16)
        machine, took = measure_machine(torch.bfloat16, self.device), 0.0
        for batch in BATCHES:
            start = time.monotonic()
            if start + 1.3 * took > until:
                print(f"no time for decoding at batch {batch}", flush=True)
                return
            setting = Setting(
                self.on, batch, 128, SPEED_NEW, rounds=self.args.rounds, prompts=self.prompts(batch, 128),
                verify=("block",),
            )  # fmt: skip
            parts = contenders(self.trunk, [(model, SPEED_BLOCK) for model in models], setting, compiled=False)
            self.keep(measure(parts, setting, machine, "bfloat16", self.device, quiet=True))
            took = time.monotonic() - start
            print(f"decoding at batch {batch}: {took:.0f} s", flush=True)


if __name__ == "__main__":
    main()
