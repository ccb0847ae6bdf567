"""Flow language models of characters and their baselines, one network and one time of training each, on one GPU.

    python -m benchmarks.gpu.flow --prepare .gpu/characters.npz                     once, where the text lies
    python -m benchmarks.gpu.flow --data .gpu/characters.npz --out flow.json --presets flow-flm flow-mdlm

Each preset, with those that it begins with or learns from, is trained for --minutes, and the judge, once for all commands on one
machine, for half as long: one preset ends within eight. Each is scored by its own bound in nats a character (of a model of blocks at every length) and writes windows from nothing in
1, 2, 4, 8 and 16 calls of the network, by every sampler it has, at three temperatures of the tokens' own draw: a judge's NLL, entropy and distinct 4-grams, beside real
windows'. Presets but for their sizes and rate, which go by the width. Imports torch, transformers, safetensors, numpy and the
packages of this project that need no more; presets travel with the text, as JSON.
"""

import argparse
import json
import sys
import time
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.fit import fit
from benchmarks.gpu.fit_map import fit_map
from benchmarks.gpu.text import prepare, read
from benchmarks.samplers import FEWEST, grids_of, samplers_of, told_for
from eval.records import record, write_records
from eval.text_laws import distinct, unigram_entropy
from flowlm.discrete.likelihood import exact_nll, nelbo
from flowlm.likelihood import Score, fit_clock, measure, vlb
from flowlm.rounding import WithRounding
from flowlm.token_map import Known
from flowmap.objectives.tokens import TokenStates
from flowmap.rng import Rng
from flowmap.self_conditioning import TwoPass
from flowmap.warp import Warp
from mtp.model import MTPForCausalLM
from training.data.flow_windows import FlowWindows
from training.data.windows import TextWindows
from training.flow_laws import laws_of, quantiles
from training.flow_models import OBJECTIVES, hold_codes, make_model
from training.flow_start import begin_with, denoise_first, teach_from
from training.objectives import build_objective

PRESETS = (
    "flow-ar", "flow-mdlm", "flow-bd3lm", "flow-flm", "flow-fmlm", "flow-leap", "flow-cfm", "flow-dfm", "flow-dfm-psd", "flow-dfm-esd",
    "flow-plaid", "flow-cdcd", "flow-langflow", "flow-bound", "flow-codar", "flow-adapt", "flow-block-flow", "flow-forcing",
)  # fmt: skip
CALLS = (1, 2, 4, 8, 16)
TEMPERATURES = (0.0, 0.7, 1.0)
NETWORK_CALLS, FITTED = 32, 256
"""Calls of the network for a scored window; windows that clocks are fitted on."""
PACE = 10_000
"""Steps that an objective is to think there are in a training of any length, which is one of minutes: shares of them are of the time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--prepare", type=Path, help="write the text's characters and the presets to this file and stop"
    )
    parser.add_argument("--name", default="wikitext2", help="--prepare: a set of leaplm data list")
    parser.add_argument("--keep", type=int, default=20_000_000, help="--prepare: training characters kept")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--presets", nargs="+", default=["flow-leap"], choices=PRESETS, metavar="NAME")
    parser.add_argument("--minutes", type=float, default=3.0, help="of training of each preset")
    parser.add_argument("--steps", type=int, help="of every training, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=128, help="windows of a training step")
    parser.add_argument("--windows", type=int, default=512, help="to score")
    parser.add_argument("--num", type=int, default=256, help="windows to write")
    args = parser.parse_args()
    if args.prepare:
        from training.config import load_preset, to_dict

        plans = {name: plan_of(to_dict(load_preset(name))) for name in PRESETS}
        return prepare(args.prepare, args.name, None, args.keep, presets=json.dumps(plans))
    if not args.data or not args.out:
        parser.error("--data and --out are needed, or --prepare")
    torch.set_float32_matmul_precision("high")
    Bench(args).run()


def plan_of(config: dict[str, Any]) -> dict[str, Any]:
    """What travels of a preset. windows: that its training reads."""
    training = config["training"]
    return config["flow"] | {
        "lr": config["optimizer"]["lr"], "precision": training["precision"], "windows": training["steps"] * training["batch_size"],
    }  # fmt: skip


class Bench:
    """text: its splits. plans: the presets' `flow` sections and rates. made: models by preset, trained once."""

    def __init__(self, args: Any) -> None:
        self.args, self.records, self.made = args, [], {}
        self.on, self.vocab, self.text = read(args.data)
        self.on = f"{self.on} characters ({args.depth}×{args.width})"
        self.plans = {name: SimpleNamespace(**p) for name, p in json.loads(str(np.load(args.data)["presets"])).items()}
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def run(self) -> None:
        self.judge = self.new_judge()
        real = self.windows("validation").batch(0, torch.arange(self.args.num)).tokens
        self.judged(real, "data", {})
        for name in self.args.presets:
            model = self.model(name)
            for block in model.config.block_lengths or (None,):
                self.scored(name, model, block)
            for sampler in samplers_of(model):
                few = [steps for steps in grids_of(model, CALLS) if steps >= FEWEST.get(sampler, 1)]
                for steps, temperature in product(few, TEMPERATURES):
                    self.written(name, model, sampler, steps, temperature)

    def earlier(self, name: str) -> dict[str, str]:
        """By the field that names it, what a preset begins with or learns from."""
        named = {field: getattr(self.plans[name], field) for field in ("start", "teacher")}
        return {field: run.removeprefix("runs/") for field, run in named.items() if run}

    def own_share(self, name: str) -> float:
        """Of the windows that a preset and the one before it read here."""
        own, before = self.plans[name].windows, set(self.earlier(name).values())
        return own / (own + sum(self.plans[run].windows for run in before))

    def keep(self, metric: str, value: float, subject: str, contract: dict[str, Any], **more: Any) -> None:
        told: dict[str, Any] = {"kind": "estimate", **more, "train_seed": self.args.seed, "contract": contract}
        self.records.append(record(metric, value, on=self.on, subject=subject, **told))
        write_records(self.args.out, ["python", "-m", "benchmarks.gpu.flow", *sys.argv[1:]], self.records)

    def windows(self, split: str, plan: Any = None, block: int | None = None) -> FlowWindows:
        source = TextWindows(self.text[split], self.args.length, 0, self.args.batch, self.args.seed)
        loop = {} if plan is None else {"noise": plan.noise, "prompt_dropout": plan.prompt_dropout}
        lengths = () if plan is None else tuple(plan.block_lengths) if block is None else (block,)
        return FlowWindows(source, 0, block_lengths=lengths, **loop)

    def new_judge(self) -> MTPForCausalLM:
        """Half as wide again as what it judges; kept beside the data, so that all commands on one machine have one judge."""
        from transformers import AutoModelForCausalLM, LlamaConfig

        args = self.args
        torch.manual_seed(args.seed)
        width = -(-3 * args.width // 128) * 64
        config = LlamaConfig(
            vocab_size=self.vocab, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=args.depth,
            num_attention_heads=width // 64, tie_word_embeddings=True, max_position_embeddings=args.length,
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        model: Any = MTPForCausalLM.from_trunk(AutoModelForCausalLM.from_config(config)).to(self.device).train()
        file = args.data.with_suffix(f".judge-{args.depth}x{width}-{args.length}.pt")
        if file.exists():
            model.load_state_dict(torch.load(file, map_location=self.device, weights_only=True))
            return model.eval()
        source = TextWindows(self.text["train"], args.length, 1, args.batch, args.seed)
        steps = args.steps or len(self.text["train"].tokens) * 5 / args.batch / args.length
        fit(model, source, 0.4 / width, time.monotonic() + 30 * args.minutes, steps)
        torch.save(model.state_dict(), file)
        return model.eval()

    def model(self, name: str, share: float = 1.0) -> Any:
        """share: of the minutes of a preset, which it and those before it have as they share its windows here."""
        if (name, share) not in self.made:
            self.made[name, share] = self.train(name, share)
        return self.made[name, share]

    def train(self, name: str, share: float) -> Any:
        args, plan = self.args, self.plans[name]
        own = share * self.own_share(name)
        before = {field: self.model(run, share - own) for field, run in self.earlier(name).items()}
        seconds = 60 * args.minutes * own
        plan.width, plan.depth, plan.heads = args.width, args.depth, max(1, args.width // 64)
        torch.manual_seed(args.seed)
        objective = build_objective("flow", plan, OBJECTIVES, laws_of(plan, self.vocab))
        torch.manual_seed(args.seed)
        model = make_model(
            plan, objective, vocab_size=self.vocab, length=args.length, bos_token_id=0, eos_token_id=0, pad_token_id=0
        ).to(self.device)
        if "start" in before:
            begin_with(model, before["start"], name)
        if "teacher" in before:
            teach_from(objective, before["teacher"], model, name)
        denoise_first(objective, plan.denoiser_first, PACE)
        hold_codes(plan, model)
        if plan.decoder == "contextual":
            objective = WithRounding(objective, plan.decoder_latest)
        if plan.prior:
            model.map.ramp_prior()

        def begin(done: float) -> None:
            if plan.prior:
                model.map.prior_share.fill_(min(1.0, done / max(plan.prior_ramp, 1e-9)))

        data, samples = self.windows("train", plan), torch.arange(args.batch)
        average, steps = fit_map(
            model.map, objective, lambda step, rng: data.batch(step, samples).to(self.device), args.batch, seconds,
            plan.lr * 128 / args.width, args.seed, args.steps, warmup=100, project=plan.project, begin=begin,
            full_precision=plan.precision == "float32", paced=PACE,
        )  # fmt: skip
        model.map.load_state_dict(average.state_dict())
        if hasattr(model.config, "clock"):
            model.config.clock = quantiles(objective, model.map.path)
        if plan.prior:
            model.map.prior_share.fill_(1.0)
        rate = steps * args.batch * args.length / seconds
        self.keep("train_tokens_per_second", rate, name, {"batch": args.batch}, unit="tokens/s", trained_steps=steps)
        print(f"{name}: {steps} steps", flush=True)
        return model.eval()

    def scored(self, name: str, model: Any, block: int | None) -> None:
        """Its own law or bound, on held-out windows."""
        plan, num = self.plans[name], self.args.windows
        states = self.windows("validation", plan, block).batch(0, torch.arange(num)).to(self.device)
        rng = Rng(self.args.seed, torch.arange(num, device=self.device))
        score = self.score(model, plan, states, rng, block)
        contract = {"block": block, "nfe": score.nfe, "dtype": "float32", "ema": 0.999}
        told: dict[str, Any] = {"kind": score.kind, "unit": "nats/token", "n": num, "monte_carlo": score.monte_carlo}
        self.keep("nll", score.value, name, contract, **told)
        print(f"{name}{f', blocks of {block}' if block else ''}: {score.value:.4f} nats, {score.kind}", flush=True)

    def score(self, model: Any, plan: Any, states: TokenStates, rng: Rng, block: int | None) -> Score:
        tokens = torch.full((states.size,), float(self.args.length), dtype=torch.float64)
        if plan.objective == "autoregressive":
            return Score(exact_nll(model.map, states).repeats[0].cpu(), tokens, "exact", (), nfe=1)
        if plan.objective == "masked":
            parts = [nelbo(model.map, states[rows], rng[rows], NETWORK_CALLS) for rows in self.parts(states.size)]
            repeats = torch.cat([part.repeats for part in parts], 1).cpu()
            return Score.of({"nelbo": repeats}, tokens, "bound", nfe=NETWORK_CALLS)
        told = getattr(model.config, "self_conditioning", 0) > 0
        own = TwoPass(model.map, through=True) if told else model.map
        rows = torch.arange(FITTED, device=self.device)
        training = self.windows("train", plan, block).batch(0, rows.cpu()).to(self.device)
        fitting = Rng(self.args.seed + 1, rows)
        clock = fit_clock(own, training, fitting, measure(own, training, fitting, draws=8))
        return vlb(own, states, rng, clock, NETWORK_CALLS)

    def parts(self, count: int) -> tuple[Tensor, ...]:
        return torch.arange(count, device=self.device).split(64)

    @torch.no_grad()
    def written(self, name: str, model: Any, sampler: str, steps: int, temperature: float) -> None:
        written, nfe = [], 0
        told = told_for(model, sampler)
        for rows in self.parts(self.args.num):
            blank = torch.zeros(len(rows), self.args.length, dtype=torch.long, device=self.device)
            known = Known(blank, torch.zeros_like(blank, dtype=torch.bool))
            out = model.write(
                known, Rng(self.args.seed, rows), steps=steps, sampler=sampler, warp=Warp(temperature), **told
            )
            written.append(out.tokens)
            nfe = out.nfe
        contract = {
            "sampler": sampler,
            "steps": steps,
            "nfe": nfe,
            "temperature": temperature,
            "top_p": 1.0,
            "dtype": "float32",
            **told,
        }
        self.judged(torch.cat(written), name, contract)

    @torch.no_grad()
    def judged(self, tokens: Tensor, subject: str, contract: dict[str, Any]) -> None:
        """tokens: (num, length); the judge is given the first of each."""
        sums = []
        for part in tokens.to(self.device).split(64):
            log_p = self.judge(part).logits[:, :-1].float().log_softmax(-1)
            sums.append(-log_p.gather(-1, part[:, 1:, None])[..., 0].mean(1))
        nll, texts = torch.cat(sums).cpu().numpy(), tokens.tolist()
        entropies = [unigram_entropy(text) for text in texts]
        for metric, values, unit in (("judge_nll", nll, "nats/token"), ("entropy", entropies, "nats")):
            error = float(np.std(values, ddof=1) / len(values) ** 0.5)
            self.keep(
                metric,
                float(np.mean(values)),
                subject,
                contract,
                unit=unit,
                n=len(texts),
                stderr=error,
                stderr_over="samples",
            )
        self.keep("distinct_n", distinct(texts, 4), subject, contract, unit="fraction", n=len(texts), ngram=4)
        at = ", ".join(f"{key} {contract[key]}" for key in ("sampler", "nfe", "temperature") if key in contract)
        print(f"{subject} {at}: judge {nll.mean():.3f}, entropy {np.mean(entropies):.3f}", flush=True)


if __name__ == "__main__":
    main()
