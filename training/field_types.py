"""Types that the fields of a run's configuration share: what is checked when a file or a command line is read."""

from typing import Annotated, Any

import tyro
import yaml
from pydantic import ConfigDict, Field


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
