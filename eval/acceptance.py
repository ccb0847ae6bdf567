"""`leaplm accept`: how many of a head's tokens the trunk lets stand, by rule and temperature.

    accepted_length         tokens that a pass of the trunk commits, the one it draws itself included; the prompt's pass
                            left out. Error over prompts
    conditional_acceptance  of the passes that kept position k−1 of their block, the share that kept position k
    tokens_per_forward      new tokens over all passes, the prompt's included
    read_per_token          tokens that the trunk reads for each it commits, the prompt left out

Lossless rules leave the text's law as it is, so that these numbers say what a head is worth, not what it costs. With
--calibrate an estimate of acceptance is fitted at training prompts, kept beside the model's weights, and scored on the
held-out ones (of a suite that holds none out, on other draws at the same): calibration_error, brier, auroc, and conditional_acceptance as the rule's exact chance in mean. With
--threshold drafts end where that estimate is below it.
"""

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from eval.calibration import Drafts, Numbers, draft_at, fit
from eval.calibration_picture import METRICS, cell
from eval.loading import LoadedRun, load_run
from eval.records import keep_records, record, write_records
from eval.reliability import Scored, score
from eval.samples import held_out_prompts, in_tokens, prompts_of, split_measured
from eval.tables import print_row
from flowmap.warp import Warp
from mtp.decoding.confidence import Confidence, load_confidence
from mtp.decoding.direct import pad_left
from mtp.decoding.speculative import decode_verified


def run(args: Any, command: list[str]) -> None:
    records: list[dict[str, Any]] = []
    for name in args.runs:
        one = load_run(name)
        if one.model.head is None and set(args.verify) != {"jacobi"}:
            raise ValueError(f"{name} has no head to draft with: only --verify jacobi")
        blocks = args.blocks or (one.block_size if one.model.head is not None else 4,)
        made = []
        fitted: dict[float, Confidence] = {}
        for temperature in args.temperatures if args.calibrate else ():
            warp = Warp(temperature, args.top_p)
            fitted[temperature], scored = calibrate(
                one, warp, blocks, args.num, args.prompt_tokens, args.new, args.seed, args.batch
            )
            keep_records(name, f"calibration-{temperature:g}", command, scored)
            records += scored
        for temperature in args.temperatures if args.threshold and not args.calibrate else ():
            fitted[temperature] = load_confidence(Path(one.folder), Warp(temperature, args.top_p))
        for block, verify, temperature in ((b, v, t) for b in blocks for v in args.verify for t in args.temperatures):
            warp = Warp(temperature, args.top_p)
            for threshold in (None, *args.threshold):
                made += measure(
                    one, verify, warp, block, args.num, args.prompt_tokens, args.new, args.seed, args.batch,
                    None if threshold is None else fitted[temperature], threshold,
                )  # fmt: skip
        keep_records(name, "-".join(["accept", *args.verify, *map(str, args.threshold)]), command, made)
        _print(one, made)
        records += made
    if args.json:
        write_records(args.json, command, records)


@torch.no_grad()
def measure(
    run: LoadedRun,
    verify: str,
    warp: Warp,
    block: int,
    num: int,
    length: int,
    new: int,
    seed: int = 0,
    batch: int = 64,
    confidence: Confidence | None = None,
    threshold: float | None = None,
) -> list[dict[str, Any]]:
    """On held-out prompts, or a suite's own. length: tokens of a prompt; new: tokens to write after it. threshold: with
    confidence, where drafts end."""
    starts = in_tokens(run, held_out_prompts(run, num, length, new))
    accepted, stopped, read, passes, written = [], [], [], 0, 0
    end = run.tokenizer.eos_token_id
    for low in tqdm(range(0, num, batch), desc=f"{verify}, T = {warp.temperature:g}", leave=False, disable=None):
        part = starts[low : low + batch]
        out = decode_verified(
            run.model, *pad_left(part, end), max_new_tokens=new, verify=verify, warp=warp, seed=seed,
            rows=torch.arange(low, low + len(part)), block_size=block, stop_tokens=(end,), pad_token=end,
            confidence=confidence, threshold=threshold or 0.0,
        )  # fmt: skip
        accepted += list(out.accepted)
        stopped += out.stopped.tolist()
        read += list(out.read)
        passes += int((out.accepted > 0).sum()) + len(part)
        written += int(out.lengths.sum())
    contract = _contract(run, warp, block, verify, length, new, batch)
    if threshold is not None:
        contract["threshold"] = threshold
    common = _common(run, num, seed, contract)
    mean, error = accepted_length(accepted)
    cost = sum(float(row.sum()) for row in read) / sum(float(row.sum()) for row in accepted)
    return [
        record("accepted_length", mean, stderr=error, stderr_over="samples", unit="tokens/pass", **common),
        record("tokens_per_forward", written / passes, unit="tokens/pass", **common),
        record("read_per_token", cost, unit="tokens/token", **common),
        *(
            record("conditional_acceptance", share, unit="fraction", position=k, **common)
            for k, share in conditional_acceptance(accepted, stopped, block).items()
        ),
    ]


def calibrate(
    run: LoadedRun,
    warp: Warp,
    blocks: Sequence[int],
    num: int,
    length: int,
    new: int,
    seed: int = 0,
    batch: int = 64,
) -> tuple[Confidence, list[dict[str, Any]]]:
    """An estimate for blocks up to the head's own, fitted on the training split under another seed, kept in the model's
    folder where that can be written to; and its scores on the prompts of `measure`, in blocks of those sizes."""

    def drafts(split: str, block: int, seed: int) -> Drafts:
        return draft_at(run, in_tokens(run, prompts_of(run, split, num, length, new)), warp, block, new, seed, batch)

    confidence = fit(drafts("train", run.head.block_size, seed + 1), warp)
    folder = Path(run.folder)
    if folder.is_dir() and os.access(folder, os.W_OK):
        confidence.save(folder)
    records = []
    for block in blocks:
        contract = _contract(run, warp, block, "token", length, new, batch)
        scored = score(confidence, drafts("validation", block, seed))
        records += _scores(scored, block, {**_common(run, num, seed, contract), "split": split_measured(run)})
        _print_scores(run, scored, records)
    return confidence, records


def _scores(scored: dict[str, Scored], block: int, common: dict[str, Any]) -> list[dict[str, Any]]:
    """What is defined: nothing tells kept from fallen where all are kept, nor is there a chance where no draft came."""

    def made(metric: str, of: Scored, statistic: Callable[[Numbers], float], **more: Any) -> dict[str, Any]:
        errors: dict[str, Any] = {"stderr": of.error(statistic), "stderr_over": "samples"}
        return record(metric, statistic(of.weight), unit="fraction", **errors, **common, **more)

    records = [
        made(metric, of, getattr(of, metric), estimate=name, **more)
        for name, of in scored.items()
        for metric, more in (
            ("calibration_error", {"details": {"bins": of.reliability(of.weight).round(6).tolist()}}),
            ("brier", {}),
            ("auroc", {}),
        )
    ]
    exact = scored["before"]
    records += [
        made("conditional_acceptance", exact, partial(exact.acceptance, position=k), position=k)
        for k in range(2, block + 1)
    ]
    return [r for r in records if math.isfinite(r["value"])]


def _contract(run: LoadedRun, warp: Warp, block: int, verify: str, length: int, new: int, batch: int) -> dict[str, Any]:
    return {
        "block": block, "verify": verify, "temperature": warp.temperature, "top_p": warp.top_p, "dtype": "float32",
        "ema": run.ema, "batch": batch, "new": new, "prompt": length,
    }  # fmt: skip


def _common(run: LoadedRun, num: int, seed: int, contract: dict[str, Any]) -> dict[str, Any]:
    return {
        "on": run.config.get("data", {}).get("name") or run.config.get("data", {}).get("suite") or "text",
        "subject": run.subject, "kind": "estimate", "n": num, "run": run.name, "train_seed": run.train_seed,
        "sample_seed": seed, "contract": contract,
    }  # fmt: skip


def accepted_length(accepted: Sequence[Tensor]) -> tuple[float, float | None]:
    """accepted: a row's tokens by pass, 0 after its end. Mean over all passes, and its error over rows (of a ratio)."""
    sums = torch.stack([row.sum() for row in accepted]).double()
    counts = torch.stack([(row > 0).sum() for row in accepted]).double()
    mean = sums.sum() / counts.sum()
    if len(sums) < 2:
        return float(mean), None
    error = (sums - mean * counts).square().sum().sqrt() / counts.sum() * (len(sums) / (len(sums) - 1)) ** 0.5
    return float(mean), float(error)


def conditional_acceptance(accepted: Sequence[Tensor], stopped: Sequence[bool], block: int) -> dict[int, float]:
    """By position, 2..K, as far as any pass came. stopped: which rows an end token ended, whose last pass then says nothing
    of the position behind it."""
    made = torch.cat([row[row > 0] for row in accepted])
    passes = [int((row > 0).sum()) for row in accepted]
    ended = torch.cat([(torch.arange(n) == n - 1) & end for n, end in zip(passes, stopped, strict=True)])
    shares = {}
    for k in range(2, block + 1):
        judged = (made >= k) | ((made == k - 1) & ~ended)
        if judged.any():
            shares[k] = float((made >= k).sum() / judged.sum())
    return shares


def _print(run: LoadedRun, records: list[dict[str, Any]]) -> None:
    print_row(f"\n{run.subject}", "K", "rule", "T", "accepted length", "read per token", "by position")
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
        cost = next(
            other["value"] for other in records if other["metric"] == "read_per_token" and other["contract"] == contract
        )
        print_row(
            f"  threshold {contract['threshold']:g}" if "threshold" in contract else "", str(contract["block"]), contract["verify"], f"{contract['temperature']:g}",
            f"{r['value']:.3f}{error}", f"{cost:.3f}", "  " + " ".join(shares),
        )  # fmt: skip


def _print_scores(run: LoadedRun, scored: dict[str, Scored], records: list[dict[str, Any]]) -> None:
    """Of the last block measured."""
    contract = records[-1]["contract"]
    head = f"\n{run.subject}, K = {contract['block']}, T = {contract['temperature']:g}"
    print_row(head, "calibration error", "Brier", "AUROC")
    for name in scored:
        mine = {r["metric"]: r for r in records if r.get("estimate") == name and r["contract"] == contract}
        print_row(f"  {name}", *(cell(mine.get(metric)) for metric in METRICS))
    print_row("  reliability of after", "estimate", "exact chance", "share")
    for row in scored["after"].reliability(scored["after"].weight):
        print_row("", *(f"{value:.3f}" for value in row))
