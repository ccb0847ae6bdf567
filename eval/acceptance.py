"""`leaplm accept`: how many of a head's tokens the trunk lets stand, by rule and temperature.

    accepted_length         tokens that a pass of the trunk commits, the one it draws itself included; the prompt's pass
                            left out. Error over prompts
    conditional_acceptance  of the passes that kept position k−1 of their block, the share that kept position k
    tokens_per_forward      new tokens over all passes, the prompt's included

Lossless rules leave the text's law as it is, so that these numbers say what a head is worth, not what it costs.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from eval.loading import LoadedRun, load_run
from eval.records import keep_records, record, write_records
from eval.samples import held_out_prompts, in_tokens
from eval.tables import print_row
from mtp.decoding.direct import pad_left
from mtp.decoding.speculative import decode_verified
from mtp.decoding.warp import Warp


def run(args: Any, command: list[str]) -> None:
    records: list[dict[str, Any]] = []
    for name in args.runs:
        one = load_run(name)
        if one.model.head is None and set(args.verify) != {"jacobi"}:
            raise ValueError(f"{name} has no head to draft with: only --verify jacobi")
        blocks = args.blocks or (one.block_size if one.model.head is not None else 4,)
        made = []
        for block, verify, temperature in ((b, v, t) for b in blocks for v in args.verify for t in args.temperatures):
            warp = Warp(temperature, args.top_p)
            made += measure(one, verify, warp, block, args.num, args.prompt_tokens, args.new, args.seed, args.batch)
        keep_records(name, "-".join(["accept", *args.verify]), command, made)
        _print(one, made)
        records += made
    if args.json:
        write_records(args.json, command, records)


@torch.no_grad()
def measure(
    run: LoadedRun, verify: str, warp: Warp, block: int, num: int, length: int, new: int, seed: int = 0, batch: int = 64
) -> list[dict[str, Any]]:
    """On held-out prompts, or a suite's own. length: tokens of a prompt; new: tokens to write after it."""
    starts = in_tokens(run, held_out_prompts(run, num, length, new))
    accepted, passes, written = [], 0, 0
    end = run.tokenizer.eos_token_id
    for low in tqdm(range(0, num, batch), desc=f"{verify}, T = {warp.temperature:g}", leave=False, disable=None):
        part = starts[low : low + batch]
        out = decode_verified(
            run.model, *pad_left(part, end), max_new_tokens=new, verify=verify, warp=warp, seed=seed,
            rows=torch.arange(low, low + len(part)), block_size=block, stop_tokens=(end,), pad_token=end,
        )  # fmt: skip
        accepted += list(out.accepted)
        passes += int((out.accepted > 0).sum()) + len(part)
        written += int(out.lengths.sum())
    contract = {
        "block": block, "verify": verify, "temperature": warp.temperature, "top_p": warp.top_p, "dtype": "float32",
        "ema": run.ema, "batch": batch, "new": new, "prompt": length,
    }  # fmt: skip
    common: dict[str, Any] = {
        "on": run.config.get("data", {}).get("name") or run.config.get("data", {}).get("suite") or "text",
        "subject": run.subject, "kind": "estimate", "n": num, "run": run.name, "train_seed": run.train_seed,
        "sample_seed": seed, "contract": contract,
    }  # fmt: skip
    mean, error = accepted_length(accepted)
    return [
        record("accepted_length", mean, stderr=error, stderr_over="samples", unit="tokens/pass", **common),
        record("tokens_per_forward", written / passes, unit="tokens/pass", **common),
        *(
            record("conditional_acceptance", share, unit="fraction", position=k, **common)
            for k, share in conditional_acceptance(accepted, block).items()
        ),
    ]


def accepted_length(accepted: Sequence[Tensor]) -> tuple[float, float | None]:
    """accepted: a row's tokens by pass, 0 after its end. Mean over all passes, and its error over rows (of a ratio)."""
    sums = torch.stack([row.sum() for row in accepted]).double()
    counts = torch.stack([(row > 0).sum() for row in accepted]).double()
    mean = sums.sum() / counts.sum()
    if len(sums) < 2:
        return float(mean), None
    error = (sums - mean * counts).square().sum().sqrt() / counts.sum() * (len(sums) / (len(sums) - 1)) ** 0.5
    return float(mean), float(error)


def conditional_acceptance(accepted: Sequence[Tensor], block: int) -> dict[int, float]:
    """By position, 2..K, as far as any pass came."""
    made = torch.cat([row[row > 0] for row in accepted])
    reached = [int((made >= k).sum()) for k in range(1, block + 1)]
    return {k: later / earlier for k, (earlier, later) in enumerate(pairwise(reached), 2) if earlier}


def _print(run: LoadedRun, records: list[dict[str, Any]]) -> None:
    print_row(f"\n{run.subject}", "K", "rule", "T", "accepted length", "by position")
    for r in records:
        if r["metric"] != "accepted_length":
            continue
        contract = r["contract"]
        shares = [
            f"{other['value']:.2f}"
            for other in records
            if other["metric"] == "conditional_acceptance" and other["contract"] == contract
        ]
        error = f" ± {r['stderr']:.3f}" if "stderr" in r else ""
        print_row(
            "", str(contract["block"]), contract["verify"], f"{contract['temperature']:g}",
            f"{r['value']:.3f}{error}", " ".join(shares),
        )  # fmt: skip
