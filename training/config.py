"""The run's configuration: dataclasses, filled from a YAML preset and then from the command line.

Every key is known and every value has its type; anything else is one line that names the nearest
right key.
"""

import dataclasses
import difflib
import json
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import tyro
import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass


def _words(values: list[str]) -> dict[str, Any]:
    if len(values) % 2:
        raise ValueError("takes pairs: KEY VALUE …")
    return {key: yaml.safe_load(value) for key, value in zip(values[::2], values[1::2], strict=True)}


PAIRS = tyro.constructors.PrimitiveConstructorSpec(
    nargs="*",
    metavar="[KEY VALUE …]",
    instance_from_str=_words,
    is_instance=lambda x: isinstance(x, dict),
    str_from_instance=lambda x: [str(part) for pair in x.items() for part in pair],
)
"""A free mapping on the command line, given whole: --trunk.config hidden_size 64 num_hidden_layers 2."""

Count = Annotated[int, Field(gt=0)]
Size = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]

STRICT = ConfigDict(strict=True, extra="forbid")
PRESETS = Path(__file__).resolve().parent.parent / "configs"


@dataclass(config=STRICT)
class DataConfig:
    """What is trained on: a suite, a cases file, or text."""

    name: str = "stdlib"
    """'stdlib' (the running Python's standard library), a set of `leaplm data list`, a local .txt/.jsonl file
    or folder, or a Hub set"""
    root: str | None = None
    """the folder of public sets as plain files, default the variable LEAPLM_DATA"""
    subset: str | None = None
    """the Hub set's configuration"""
    split: str = "train"
    """the Hub set's training split"""
    validation: str | None = None
    """a local file, or the Hub set's split, to validate on; default: part of the documents is held out"""
    text_column: str = "text"
    """the column that holds the text"""
    sample_by: Literal["document", "paragraph", "line"] = "document"
    """what one document is in a plain text file"""
    streaming: bool = False
    """read the Hub set or the files as a stream instead of converting them first"""
    max_documents: Count | None = None
    """stop reading after so many documents"""
    length: Count = 256
    """tokens the trunk reads at once"""
    suite: str | None = None
    """a validity suite to train on instead of text: poker, pairs-64, skip-64, dates, sums-2, …"""
    cases: str | None = None
    """a cases.jsonl file to train on instead of text: rows {"prompt", "texts", "p" (optional)}"""


@dataclass(config=STRICT)
class TokenizerConfig:
    """How text becomes tokens."""

    kind: Literal["bpe", "words", "pretrained"] = "bpe"
    """bpe: byte-level, trained on the corpus; words: one token per word; pretrained: by name or path"""
    vocab_size: Count = 2048
    """of a BPE trained here"""
    name: str | None = None
    """the pretrained tokenizer, default the trunk's own"""


@dataclass(config=STRICT)
class TrunkConfig:
    """The causal language model the head sits on."""

    pretrained: str | None = None
    """a causal LM by name or path, or a leaplm run directory; default: from scratch"""
    architecture: str = "llama"
    """from scratch: any causal LM of transformers by its model_type (llama, qwen3, gpt2, …)"""
    config: Annotated[dict[str, int | float | bool | str], PAIRS] = field(default_factory=dict)
    """from scratch: fields of that architecture's config"""
    frozen: bool = False
    """train the head alone"""
    cache_states: bool = False
    """frozen: compute the trunk's states once and keep them on disk"""


@dataclass(config=STRICT)
class HeadConfig:
    """The joint head."""

    name: str | None = None
    """independent, first-order-chain, recurrent-chain, block-chain; none: the trunk alone"""
    block_size: Count = 4
    """K, tokens per trunk pass, from 2 to 16"""
    rank: Count | None = None
    """ρ of a chain's low-rank logits, default 256; a head without a chain has none"""
    options: Annotated[dict[str, int], PAIRS] = field(default_factory=dict)
    """more of the family's own options: projection_width, width, num_layers, …"""
    weight: Rate = 1.0
    """of the head's loss beside the trunk's"""
    anchor_fraction: Share = 1.0
    """score the head on this fraction of the positions"""
    starts_only: bool = False
    """suites and cases: train the head only where decoding hangs its blocks, at the prompt's end and every K
    tokens after it; K times less work, and the run can then be probed with blocks of K alone"""


@dataclass(config=STRICT)
class OptimizerConfig:
    """AdamW, and its learning rate as a function of the step alone."""

    lr: Size = 1e-3
    """the highest learning rate"""
    min_lr_ratio: Rate = 0.0
    """last learning rate over the highest"""
    warmup: Annotated[int, Field(ge=0)] = 50
    """steps of linear warm-up"""
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    """after the warm-up"""
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    weight_decay: Rate = 0.1
    """on matrices only"""
    clip: Size = 1.0
    """largest gradient norm"""


@dataclass(config=STRICT)
class TrainingConfig:
    """How long, how large, how often."""

    steps: Count = 1000
    """optimizer steps"""
    batch_size: Count = 16
    """samples in a global batch, over all processes and accumulation steps"""
    accumulation: Count = 1
    """micro-batches per process; changes memory, not the result"""
    ema: Decay | None = 0.999
    """decay of the averaged weights that are evaluated and saved; none: the weights themselves"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast on GPUs and on CPUs with AMX or AVX512-BF16, float32 elsewhere"""
    threads: Count | None = None
    """CPU threads; default: the faster of one and all, timed at the start and kept on resume"""
    log_every: Count = 10
    evaluate_every: Count = 500
    evaluate_batches: Count = 8
    """validation batches each time; all at the end is `leaplm perplexity`'s work"""
    checkpoint_every: Count = 200
    keep_checkpoints: Count = 1
    """older ones are removed"""


@dataclass(config=STRICT)
class RunConfig:
    """A training run."""

    seed: int = 0
    """of initialisation, data order and noise"""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


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
    """over's values win; nested keys are merged, not replaced."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
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
        if dataclasses.is_dataclass(f.type):
            keys += known_keys(cast(type, f.type), f"{prefix}{f.name}.")
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
