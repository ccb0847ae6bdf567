"""Public sets as lm-eval reads them, from plain files under LEAPLM_DATA: no network and no path in any task's YAML."""

import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict


def documents(*, local_files: dict[str, str], **_: Any) -> DatasetDict:
    """local_files: split → .jsonl or .txt under LEAPLM_DATA, there as it is or with .gz. What else a task's metadata holds
    is not looked at."""
    root = os.environ.get("LEAPLM_DATA")
    if not root:
        raise ValueError(
            f"LEAPLM_DATA is not set: name the folder of public sets, which holds {min(local_files.values())}"
        )
    return DatasetDict({split: Dataset.from_list(read_rows(Path(root), name)) for split, name in local_files.items()})


def read_rows(root: Path, name: str) -> list[dict[str, Any]]:
    """A JSON line or a plain line, {"text": line}, is a document."""
    found = next((path for path in (root / name, root / f"{name}.gz") if path.is_file()), None)
    if found is None:
        raise ValueError(f"LEAPLM_DATA={root} holds no {name}, nor {name}.gz")
    with (gzip.open if found.suffix == ".gz" else open)(found, "rt", encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line in file]
    as_json = name.endswith(".jsonl")
    return [json.loads(line) if as_json else {"text": line} for line in lines if line.strip()]


def hellaswag_context(doc: dict[str, Any]) -> str:
    return _without_brackets(doc["query"])


def hellaswag_endings(doc: dict[str, Any]) -> list[str]:
    return [_without_brackets(text) for text in doc["choices"]]


def _without_brackets(text: str) -> str:
    """WikiHow's links, of which the files have kept a few that the stock task takes out."""
    return re.sub(r"\[.*?\]", "", text)
