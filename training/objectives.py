"""An objective by its name in a configuration, with its own options."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from flowmap.naming import is_own, own_class
from flowmap.objectives import Objective
from flowmap.signal import SignalLaw
from flowmap.times import LogitNormal, TimeLaw, Uniform

Laws = Mapping[str, Callable[[], TimeLaw | SignalLaw]]
TIMES: Laws = {"uniform": Uniform, "logit-normal": LogitNormal}


class Plan(Protocol):
    """The part of a configuration that names one."""

    objective: str
    options: dict[str, int | float | bool | str]


def build_objective(
    section: str,
    plan: Plan,
    known: dict[str, type[Objective]],
    laws: Laws = TIMES,
) -> Objective:
    """section: of the configuration, for what is said of a mistake. The options `times` and `spans` are names of laws;
    `low_discrepancy`, of any objective with times, spreads them evenly over the global batch."""
    if is_own(plan.objective):
        known = {**known, plan.objective: own_class(plan.objective, Objective)}
    if plan.objective not in known:
        raise ValueError(f"unknown objective {plan.objective!r}: known are {', '.join(known)}")
    kind = known[plan.objective]
    options: dict[str, Any] = dict(plan.options)
    even = options.pop("low_discrepancy", False)
    for law in {"times", "spans"} & set(options):
        if options[law] not in laws:
            raise ValueError(f"{section}.options {law} {options[law]!r}: known are {', '.join(laws)}")
        options[law] = laws[options[law]]()
    takes: dict[str, Any] = {}
    for maker in (vars(k)["__init__"] for k in kind.__mro__ if "__init__" in vars(k)):
        parameters = inspect.signature(maker).parameters
        takes |= {name: p.default for name, p in parameters.items() if name not in takes}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    if unknown := sorted(set(options) - set(takes)):
        own = [name for name in takes if name not in ("self", "args", "more", "kwargs")]
        raise ValueError(f"objective {plan.objective} has no option {unknown[0]!r}; it has {', '.join(own)}")
    for name, value in options.items():
        if isinstance(value, str) and isinstance(takes[name], int | float):
            raise ValueError(f"{section}.options {name} {value!r} must be a number, as {takes[name]!r} is")
    if even not in (True, False) or (even and "times" not in takes and not kind.spreads):
        raise ValueError(f"{section}.options low_discrepancy {even!r}: true or false, of an objective that has times")
    objective = kind(**options)
    objective.low_discrepancy = even
    return objective
