"""The run's configuration: dataclasses, filled from a YAML preset and then from the command line.

Every key is known and every value has its type; anything else is one line that names the nearest
right key.
"""

import dataclasses
import difflib
import json
import types
from pathlib import Path
from typing import Any, cast, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError

from training.fields import (
    DataConfig,
    HeadConfig,
    OptimizerConfig,
    RunConfig,
    TokenizerConfig,
    TrainingConfig,
    TrunkConfig,
)
from training.map_fields import FlowConfig, ImageConfig

__all__ = [
    "DataConfig", "FlowConfig", "HeadConfig", "ImageConfig", "OptimizerConfig", "RunConfig", "TokenizerConfig", "TrainingConfig",
    "TrunkConfig", "difference", "known_keys", "load_preset", "merge", "one_line", "override", "preset_names",
    "read_yaml", "to_dict", "validate",
]  # fmt: skip

PRESETS = Path(__file__).resolve().parent.parent / "configs"


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml") if not path.stem.startswith("_"))


def load_preset(name: str) -> RunConfig:
    """A preset by name, or any YAML file by path. `extends: NAME` starts from another preset."""
    return validate(_read_preset(name), f"preset {name}")


def _read_preset(name: str) -> dict[str, Any]:
    path = PRESETS / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
        if not (path.suffix in (".yaml", ".yml") and path.is_file()):
            near = difflib.get_close_matches(name, preset_names(), 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(preset_names())}"
            raise ValueError(f"unknown preset {name!r}: {hint}")
    return read_yaml(path)


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold keys and values")
    parent = values.pop("extends", None)
    return merge(_read_preset(parent), values) if parent else values


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """over's values win; nested keys are merged, not replaced; an option that base has is taken away by None."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        if key == "options" and isinstance(old, dict) and isinstance(value, dict):
            result[key] = {name: v for name, v in result[key].items() if v is not None or name not in old}
    return result


def validate(values: dict[str, Any], source: str) -> RunConfig:
    try:  # through JSON, where strict means the JSON type and sections may be written as mappings
        return TypeAdapter(RunConfig).validate_json(json.dumps(values))
    except ValidationError as error:
        raise ValueError(f"{source}: {one_line(error)}") from error


def to_dict(config: RunConfig) -> dict[str, Any]:
    return dataclasses.asdict(config)


def difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the fields in which two configurations differ."""
    names = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names += difference(a, b, f"{prefix}{key}.")
        elif a != b:
            names.append(prefix + key)
    return names


def known_keys(kind: type = RunConfig, prefix: str = "") -> list[str]:
    """Every key by its dotted name."""
    keys = []
    for f in dataclasses.fields(kind):
        inner = get_args(f.type)[0] if get_origin(f.type) is types.UnionType else f.type
        if dataclasses.is_dataclass(inner):
            keys += known_keys(cast(type, inner), f"{prefix}{f.name}.")
        else:
            keys.append(prefix + f.name)
    return keys


def nearest_key(key: str) -> str:
    near = difflib.get_close_matches(key, known_keys(), 1, 0.5)
    if not near:
        last = {k.rpartition(".")[2]: k for k in known_keys()}
        near = [last[n] for n in difflib.get_close_matches(key.rpartition(".")[2], last, 1, 0.5)]
    return near[0] if near else ""


def one_line(error: ValidationError) -> str:
    """The first thing wrong, and the nearest right key."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("dict[", "function-")))
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        near = nearest_key(key)
        return f"unknown key {key!r}" + (f"; did you mean {near!r}?" if near else "")
    return f"{key} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def override(config: RunConfig, **values: Any) -> RunConfig:
    """A copy with other values, by dotted key with __ for the dot: override(c, head__name="independent")."""
    changes: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split("__")
        inner = changes
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return validate(merge(to_dict(config), changes), "override")
