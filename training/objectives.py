"""An objective by its name in a configuration, with its own options."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from flowmap.objectives import Objective
from flowmap.times import LogitNormal, TimeLaw, Uniform

TIMES: Mapping[str, Callable[[], TimeLaw]] = {"uniform": Uniform, "logit-normal": LogitNormal}


class Plan(Protocol):
    """The part of a configuration that names one."""

    objective: str
    options: dict[str, int | float | bool | str]


def build_objective(
    section: str,
    plan: Plan,
    known: dict[str, type[Objective]],
    laws: Mapping[str, Callable[[], TimeLaw]] = TIMES,
) -> Objective:
    """section: of the configuration, for what is said of a mistake. The option `times` is the name of one of laws."""
    if plan.objective not in known:
        raise ValueError(f"unknown objective {plan.objective!r}: known are {', '.join(known)}")
    kind = known[plan.objective]
    options: dict[str, Any] = dict(plan.options)
    if "times" in options:
        if options["times"] not in laws:
            raise ValueError(f"{section}.options times {options['times']!r}: known are {', '.join(laws)}")
        options["times"] = laws[options["times"]]()
    makers = [vars(k)["__init__"] for k in kind.__mro__ if "__init__" in vars(k)]
    takes = [p for maker in makers for p in inspect.signature(maker).parameters]
    if unknown := sorted(set(options) - set(takes)):
        own = [p for p in dict.fromkeys(takes) if p not in ("self", "args", "more", "kwargs")]
        raise ValueError(f"objective {plan.objective} has no option {unknown[0]!r}; it has {', '.join(own)}")
    return kind(**options)
