"""The one shape of every JSON the project writes: an envelope of flat records."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.provenance import provenance, write_json

SCHEMA = "leaplm/1"
METRICS = frozenset(
    [
        "validity",
        "total_variation",
        "total_variation_exact",
        "coverage",
        "entropy",
        "nll",
        "perplexity",
        "bits_per_byte",
        "block_nll",
        "gap_closed",
        "direct_nll",
        "accepted_length",
        "conditional_acceptance",
        "tokens_per_second",
        "latency",
        "speedup",
        "tokens_per_forward",
        "peak_memory",
        "parameters",
        "flops",
        "train_tokens_per_second",
        "mfu",
        "data_wait",
        "judge_nll",
        "distinct_n",
        "mauve",
        "brier_lm",
        "classifier_fid",
        "inception_fid",
        "fid_ratio",
        "matching_steps",
        "kid",
        "inception_score",
        "precision",
        "recall",
        "energy_distance",
        "sliced_w2",
        "histogram_kl",
        "mmd",
        "bias",
        "variance",
        "cosine",
        "calibration_error",
        "brier",
        "auroc",
        "read_per_token",
        "repetition",
        "nearest_train_distance",
        "spearman",
        "kl",
        "ngram_kl",
        "effective_sample_size",
        "harness_score",
        "slope",
    ]
)


def record(metric: str, value: float, *, on: str, subject: str, kind: str, unit: str, **more: Any) -> dict[str, Any]:
    """One number. kind: exact, bound or estimate. more: stderr, stderr_over, n, run, split,
    train_seed, sample_seed, contract, and whatever else says how it was made."""
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} is not one of the published names")
    base: dict[str, Any] = {"metric": metric, "on": on, "subject": subject, "value": float(value)}
    stderr: dict[str, Any] = {k: more.pop(k) for k in ("stderr", "stderr_over") if k in more}
    if stderr.get("stderr") is None:  # of one document or sample there is none
        stderr = {}
    return {**base, **stderr, "unit": unit, "kind": kind, **more}


def write_records(path: Path, command: list[str], results: list[dict[str, Any]], **more: Any) -> None:
    """more: beside the records, what is no number: samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    envelope = {"schema": SCHEMA, "command": command, "provenance": provenance(), "results": results}
    write_json(path, {**envelope, **more})


def read_records(path: Path) -> list[dict[str, Any]]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise ValueError(f"{path} holds no records of {SCHEMA}")
    return value["results"]


def keep_records(run: str, name: str, command: list[str], results: list[dict[str, Any]]) -> None:
    """In the run's own folder, where `leaplm report RUN` finds them; measured again, they are replaced. A run
    that is no folder of ours, or cannot be written to, keeps nothing."""
    folder = Path(run)
    if (folder / "checkpoints").is_dir() and os.access(folder, os.W_OK):
        safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
        write_records(folder / "records" / f"{safe}.json", command, results)


def mean_error(values: Sequence[float]) -> tuple[float, float]:
    """(mean, its standard error) of two values or more; of one, an error of 0."""
    mean = sum(values) / len(values)
    return mean, (sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1) / len(values)) ** 0.5


def seeds_mean(records: list[dict[str, Any]]) -> dict[str, Any]:
    """One record for the mean over training seeds of records that differ in nothing else; of a single
    seed, that record itself."""
    if len(records) == 1:
        return dict(records[0])
    mean, spread = mean_error([r["value"] for r in records])
    kept = {
        k: v for k, v in records[0].items() if k not in ("run", "train_seed", "sample_seed", "stderr", "stderr_over")
    }
    seeds = [r.get("train_seed") for r in records]
    return {**kept, "value": mean, "stderr": spread, "stderr_over": "seeds", "seeds": seeds}


def over_seeds(records: list[dict[str, Any]]) -> dict[str, Any]:
    """One record of several: the mean where training seeds differ, else the first. Of trunks that came frozen, whose seed
    nobody knows, another value is another trunk."""
    by_seed: dict[Any, dict[str, Any]] = {}
    for r in records:
        seed = r.get("train_seed")
        by_seed.setdefault(("unknown", r["value"]) if seed is None else seed, r)
    return seeds_mean(list(by_seed.values()))


PLAIN = {"grid": "even", "order": "left-to-right"}
"""What is done where nothing else is asked for."""
SHARES = ("renoise", "guidance", "top_p", "score_temperature")
"""Numbers of which 1 asks for nothing."""


def written_by(r: Mapping[str, Any]) -> str:
    """The subject, and what besides its sampler it was asked to do otherwise than it was trained to."""
    contract = r["contract"]
    told = [f"decoder {contract['decoder']}"] if contract.get("decoder") in ("softmax", "nearest") else []
    told += ["one pass a step"] * (contract.get("self_conditioning") is False)
    told += [f"{name} {contract[name]}" for name, plain in PLAIN.items() if contract.get(name) not in (None, plain)]
    told += [f"{name} {contract[name]:g}" for name in SHARES if contract.get(name, 1) != 1]
    told += [f"delay {contract['delay']}"] if contract.get("delay") else []
    return ", ".join([r["subject"], *told])
