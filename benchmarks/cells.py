"""A cell of a table: a measurement that is done once, kept as JSON, and done again when its inputs change."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from eval.records import SCHEMA
from training.provenance import provenance, write_json


def cell(
    file: Path,
    inputs: dict[str, Any],
    command: list[str],
    measure: Callable[[], list[dict[str, Any]]],
    kept: bool = False,
) -> list[dict[str, Any]]:
    """The records of a cell; `measure` runs only if the file is missing or was made from other inputs. kept: then
    there are none, and nothing is measured."""
    digest = hashlib.sha256(json.dumps(_stated(inputs), sort_keys=True).encode()).hexdigest()
    if file.exists():
        held = json.loads(file.read_text())
        if held["inputs_sha256"] == digest:
            return held["results"]
    if kept:
        return []
    results = [_placeless(r) for r in measure()]
    file.parent.mkdir(parents=True, exist_ok=True)
    envelope = {
        "schema": SCHEMA,
        "command": [_place(word) for word in command],
        "provenance": provenance(),
        "inputs_sha256": digest,
        "results": results,
    }
    write_json(file, envelope)
    return results


def _placeless(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, **{name: _place(record[name]) for name in ("run", "judge") if record.get(name)}}


def _place(text: str) -> str:
    """Of a path on this machine its last part: cells are committed, and mean the same anywhere."""
    return Path(text).name if Path(text).is_absolute() else text


def _stated(inputs: Any) -> Any:
    """Without what is None, false or empty, so that a field added since, which is off, changes nothing."""
    if not isinstance(inputs, dict):
        return inputs
    stated = {key: _stated(value) for key, value in inputs.items()}
    return {key: value for key, value in stated.items() if value is not None and value is not False and value != {}}


def settings(pairs: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE… as training.config.override takes them: a variant of a cell."""
    split = dict(pair.split("=", 1) for pair in pairs)
    return {key.replace(".", "__"): yaml.safe_load(value) for key, value in split.items()}


def cell_name(subject: str, seed: int, variant: Mapping[str, Any]) -> str:
    return "-".join([subject, str(seed), *(f"{key.split('__')[-1]}-{value}" for key, value in variant.items())])
