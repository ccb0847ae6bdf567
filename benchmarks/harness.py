"""How fast lm-eval is with our trunk against its own Hugging Face model: the same weights, requests and batches, in turns.

    python -m benchmarks.harness RUN [RUN …] [--json benchmarks/results/speed/harness.json]

RUN: run directories or folders of causal LMs; S and M are the reference trunks with random weights behind the tokenizer of the
first RUN. Requests: the first of HellaSwag (four endings a context), LAMBADA (one word), WikiText-2 (whole pages) and GSM8K (text
to be written), those of them that LEAPLM_DATA holds, in fp32. Both answer alike, to 1e-3 nats, or nothing is timed.
"""

import argparse
import logging
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from eval.harness.command import TASKS
from eval.harness.mtp import LeapMTP
from eval.loading import load_run
from eval.records import record, write_records
from eval.speed.references import SHAPES, reference_trunk
from eval.speed.timing import interleaved, load_average, pair_ratio
from training.hardware import quiet_libraries

LIMITS = {"local_hellaswag": 16, "local_lambada_openai": 64, "local_wikitext2": 2, "local_gsm8k": 4}
"""Documents of each task in a round."""
NEW = 32
"""Tokens written behind each prompt of GSM8K, whose fewshot examples are left out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="or S, M")
    parser.add_argument("--tasks", nargs="+", choices=sorted(LIMITS), default=list(LIMITS))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    quiet_libraries()
    logging.disable(logging.WARNING)  # tasks that say what they might be told
    records = []
    for run in args.runs:
        with TemporaryDirectory() as folder:
            name = written(run, args.runs[0], Path(folder))
            for task in args.tasks:
                records += measure(run, name, task, args.batch_size, args.rounds)
    if args.json:
        write_records(args.json, ["python", "-m", "benchmarks.harness", *sys.argv[1:]], records)


def written(run: str, first: str, folder: Path) -> str:
    """A folder that both models load."""
    loaded = load_run(first if run in SHAPES else run)
    trunk = reference_trunk(run, torch.float32, torch.device("cpu")) if run in SHAPES else loaded.model.trunk
    trunk.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return str(folder)


def measure(run: str, folder: str, task: str, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    requests = requests_of(task)
    if not requests:
        print(f"{task}: its data is not here, left out")
        return []
    models = {
        "hf": HFLM(pretrained=folder, batch_size=batch_size, device="cpu", dtype="float32"),
        "leaplm": LeapMTP(folder, decoder="trunk", batch_size=batch_size, device="cpu"),
    }
    (kind,) = {request.request_type for request in requests}
    asked = {name: partial(getattr(model, kind), requests, disable_tqdm=True) for name, model in models.items()}
    check_alike(*(ask() for ask in asked.values()))
    seconds = interleaved(asked, rounds, task)
    ratio = pair_ratio(seconds["hf"], seconds["leaplm"])
    told = "" if ratio.stable else ", no result"
    print(
        f"{run}, {task}: {ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f}{told}) × lm-eval's own model", flush=True
    )
    contract = {"batch": batch_size, "dtype": "float32", "requests": kind}
    return [
        record(
            "speedup", ratio.value, on=task, subject="leaplm-mtp, decoder=trunk", kind="estimate", unit="× lm-eval's hf",
            interval=[ratio.low, ratio.high], stable=ratio.stable, n=rounds, run=run, contract=contract,
            load_average=load_average(),
        )
    ]  # fmt: skip


def requests_of(task: str) -> list[Any]:
    """Empty where its data is not here."""
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    try:
        (loaded,) = manager.load([task])["tasks"].values()
    except (FileNotFoundError, ValueError):
        return []
    loaded.set_config("num_fewshot", 0)
    loaded.build_all_requests(limit=LIMITS[task])
    for request in loaded.instances:
        if request.request_type == "generate_until":
            text, how = request.arguments
            request.arguments = (text, {**how, "max_gen_toks": NEW})
    return loaded.instances


def check_alike(theirs: list[Any], mine: list[Any]) -> None:
    if theirs and isinstance(theirs[0], str):
        same = [a == b for a, b in zip(theirs, mine, strict=True)]
    else:
        first = [[a[0] if isinstance(a, tuple) else a for a in part] for part in (theirs, mine)]
        same = [abs(a - b) < 1e-3 + 1e-6 * abs(a) for a, b in zip(*first, strict=True)]
    if not all(same):
        raise ValueError(f"{same.count(False)} of {len(same)} answers differ, so that no time is compared")


if __name__ == "__main__":
    main()
