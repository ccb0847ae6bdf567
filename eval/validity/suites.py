"""What a validity suite is, and how one is found by name.

A suite is its exact law: prompts, and for each the probabilities of its answers. Plain Python:
training draws from the same law that probing scores against. A new one is a function that returns a
`Suite`, registered under its name:

    @register("coins")
    def coins() -> Suite:
        return Suite("coins", {"the coins are": {"heads tails": 0.5, "tails heads": 0.5}})

or, of one's own, named where it lies: `--suite my_suites:coins`, with PYTHONPATH=. for a file in this folder.
"""

import difflib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

Laws = Mapping[str, Mapping[str, float]]
"""prompt → {answer: probability}"""


@dataclass(frozen=True)
class Suite:
    """laws: what probing scores against; an answer is words joined by single spaces. train_laws: what is
    trained on, where prompts are held out; else laws. train_weights: how often each of those prompts is
    drawn in training; else all alike. strata: prompt → the class it is reported in.
    dumb_laws: by name, laws that know too little, to stand beside a result."""

    name: str
    laws: Laws
    train_laws: Laws | None = None
    train_weights: Mapping[str, float] = field(default_factory=dict)
    strata: Mapping[str, str] = field(default_factory=dict)
    dumb_laws: Mapping[str, Laws] = field(default_factory=dict)

    @property
    def prompts(self) -> tuple[str, ...]:
        return tuple(self.laws)

    @property
    def trained(self) -> Laws:
        return self.laws if self.train_laws is None else self.train_laws

    def is_valid(self, prompt: str, text: str) -> bool:
        return self.laws[prompt].get(text, 0) > 0

    @property
    def fingerprint(self) -> str:
        laws = self.laws if self.train_laws is None else [self.laws, self.train_laws, self.train_weights]
        return hashlib.sha256(json.dumps(laws, sort_keys=True).encode()).hexdigest()[:20]


def share_of_hash(text: str) -> float:
    """A number in [0, 1) that is the same for a text on every machine: how prompts are held out."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


_FAMILIES: dict[str, tuple[Callable[..., Suite], tuple[int, ...]]] = {}


def register(name: str, sizes: tuple[int, ...] = ()) -> Callable[[Callable[..., Suite]], Callable[..., Suite]]:
    """Put a suite, or with sizes a family `name-M`, under its name. sizes: those worth suggesting."""

    def add(build: Callable[..., Suite]) -> Callable[..., Suite]:
        _FAMILIES[name] = (build, sizes)
        return build

    return add


def suite_names() -> list[str]:
    """Names worth suggesting."""
    import eval.validity.families
    import eval.validity.poker_draw
    import eval.validity.smiles  # noqa: F401  (importing registers the built-in ones)

    return [f"{name}-{size}" if size else name for name, (_, sizes) in _FAMILIES.items() for size in sizes or (0,)]


def load_suite(name: str) -> Suite:
    """A suite by name (`poker`, `pairs-64`, `skip-64`, …), a cases file's path, or one's own as `module:function`."""
    from eval.validity.open import OPEN_SUITES

    if name in OPEN_SUITES:
        raise ValueError(f"suite {name} has no law to train on or to list: train on text, and probe with it")
    if name.endswith((".jsonl", ".json")) or Path(name).is_file():
        from eval.validity.cases import load_cases

        return load_cases(Path(name))
    if ":" in name:
        return _own_suite(name)
    names = [*suite_names(), *OPEN_SUITES]
    family, _, size = name.rpartition("-")
    if name in _FAMILIES and not _FAMILIES[name][1]:
        return _FAMILIES[name][0]()
    if family in _FAMILIES and _FAMILIES[family][1] and size.isdigit():
        return _FAMILIES[family][0](int(size))
    near = difflib.get_close_matches(name, names, 1, 0.3)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}, or a cases.jsonl file"
    raise ValueError(f"unknown suite {name!r}: {hint}")


def _own_suite(name: str) -> Suite:
    """What `module:function` returns."""
    module, _, attribute = name.partition(":")
    try:
        build = getattr(import_module(module), attribute, None)
    except (ImportError, ValueError) as error:
        raise ValueError(f"suite {name!r}: {error}; PYTHONPATH names the folder of the module") from error
    made = build() if callable(build) else None
    if not isinstance(made, Suite):
        raise ValueError(f"suite {name!r}: {module} holds no function {attribute!r} that returns a Suite")
    return made
