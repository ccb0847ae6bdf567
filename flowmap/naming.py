"""A class by its name: one of ours from a table, or anybody's own as `module:Class`.

The module is found as Python finds modules, so PYTHONPATH=. serves a file in the folder that a command is given in.
"""

from importlib import import_module
from typing import TypeVar

T = TypeVar("T")


def is_own(name: str) -> bool:
    """Whether a name is of the form module:Class."""
    return ":" in name


def own_class(name: str, base: type[T]) -> type[T]:
    """The class that `module:Class` names. ValueError where there is none, or it is no `base`."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute, None)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{name!r}: {error}; PYTHONPATH names the folder of the module") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{name!r}: {module} holds no {base.__name__} of the name {attribute!r}")
    return found
