"""The orderings that published flow language models claim against their own ablations, as pairs of cells of benchmarks.flow_text.

A row says which of two trainings its source found better, and by what they are compared here: the bound in nats a token, or the
judge's NLL of samples at an entropy that both sides' have, in so many calls of the network. Shared sizes, seeds and windows, but
that models of blocks read a third of them, each twice; one name or one preset differs.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from scipy.stats import t

from eval.frontier import Knobs, at_common, knobs, one_knob
from eval.records import mean_error

Variant = dict[str, Any]


@dataclass(frozen=True)
class Ordering:
    """better, worse: (preset, what is set in it). nfe: calls of the network of the samples judged, None: the bound; other: of the worse
    side, where it differs. samplers, decoders: that wrote them, "": the only one. blocks: of a
    model of several lengths, whose single tokens are an autoregressive model whatever it is else."""

    source: str
    claim: str
    better: tuple[str, Variant]
    worse: tuple[str, Variant]
    nfe: int | None = None
    samplers: tuple[str, str] = ("", "")
    decoders: tuple[str, str] = ("", "")
    other: int | None = None
    blocks: tuple[int, int] = (16, 16)

    @property
    def calls(self) -> tuple[int | None, int | None]:
        return self.nfe, self.other or self.nfe


EULER, JUMPS = ("ddim", "ddim"), ("pushforward", "pushforward")
UNIFORM: Variant = {"flow__options__times": "uniform"}
ALONE: Variant = {"flow__options__carry": None}
"""No jump hears of another."""
ONE_PASS: Variant = {"flow__options__self_conditioning": 0.0}
ORDERINGS = (
    Ordering("flm", "cross-entropy before regression of the endpoint", ("flow-flm", {}), ("flow-flm", {"flow__objective": "endpoint"}), 16, EULER),
    Ordering("flm", "cross-entropy before regression of the velocity", ("flow-flm", {}), ("flow-flm", {"flow__objective": "endpoint", "flow__options__power": 2.0, "flow__options__t_min": 0.05}), 16, EULER),
    Ordering("flm", "times where tokens are decided, and steps that close on them, before even ones", ("flow-flm", {}), ("flow-flm", UNIFORM), 16, EULER),
    Ordering("fmlm", "semigroup distillation before Lagrangian, one step", ("flow-fmlm", {}), ("flow-fmlm", {"flow__objective": "lsd", "flow__options__boundary": None}), 1, JUMPS),
    Ordering("dfm", "ESD (full precision) before PSD at four steps", ("flow-dfm-esd", {}), ("flow-dfm-psd", {}), 4, JUMPS),
    Ordering("dfm", "PSD before ESD (full precision) at one step", ("flow-dfm-psd", {}), ("flow-dfm-esd", {}), 1, JUMPS),
    Ordering("dfm", "PSD whose gradient gives way to the denoiser's", ("flow-dfm-psd", {"flow__project": True}), ("flow-dfm-psd", {}), 4, JUMPS),
    Ordering("plaid", "the matched filter before none", ("flow-plaid", {}), ("flow-plaid", {"flow__prior": False})),
    Ordering("plaid", "self-conditioning before none", ("flow-plaid", {}), ("flow-plaid", ONE_PASS)),
    Ordering("plaid", "a learned schedule before one even in log-SNR", ("flow-plaid", {}), ("flow-plaid", {"flow__options__times": None})),
    Ordering("plaid", "learned codes before codes as drawn", ("flow-plaid", {}), ("flow-plaid", {"flow__learn_codes": False})),
    Ordering("plaid", "the bound alone before cross-entropy added", ("flow-plaid", {}), ("flow-plaid", {"flow__options__cross_entropy": 1.0})),
    Ordering("cdcd", "times warped by cross-entropy, and steps that close on them, before even ones", ("flow-cdcd", {}), ("flow-cdcd", UNIFORM), 16, EULER),
    Ordering("langflow", "self-conditioning before none", ("flow-langflow", {}), ("flow-langflow", ONE_PASS), 16, EULER),
    Ordering("codar", "a contextual decoder before the softmax", ("flow-codar", {}), ("flow-codar", {"flow__decoder": "softmax"}), 16, EULER, ("contextual", "")),
    Ordering("codar", "a contextual decoder before the nearest code", ("flow-codar", {}), ("flow-codar", {}), 16, EULER, ("contextual", "nearest")),
    Ordering("flowlm-adapt", "fine-tuned, codes and all, before trained from scratch", ("flow-adapt", {}), ("flow-adapt", {"flow__start": None}), 4, EULER),
    Ordering("flowlm-adapt", "its four calls before sixteen of the same trained on for as long", ("flow-adapt", {}), ("flow-langflow", {}), 4, EULER, other=16),
    Ordering("bd3lm", "times clipped before all times", ("flow-bd3lm", {"flow__options__least": 0.3, "flow__options__most": 0.8}), ("flow-bd3lm", {})),
    Ordering("block-flow", "blocks before whole windows, of one model", ("flow-block-flow", {}), ("flow-block-flow", {}), blocks=(16, 128)),
    Ordering("block-flow", "autoregressive before blocks", ("flow-ar", {}), ("flow-block-flow", {})),
    Ordering("mdlm", "blocks before whole windows", ("flow-bd3lm", {}), ("flow-mdlm", {})),
    Ordering("mdlm", "autoregressive before blocks", ("flow-ar", {}), ("flow-bd3lm", {})),
    Ordering("leap", "the denoiser's trajectories before the map's own two jumps", ("flow-leap", ALONE), ("flow-leap", {**ALONE, "flow__objective": "kl-psd", "flow__options__jumps": None, "flow__options__num_steps": None, "flow__options__boundary": 0.0625, "flow__options__diagonal": 0.25}), 4, JUMPS),
    Ordering("leap", "jumps that are made before jumps of any length, of equal cost", ("flow-leap", ALONE), ("flow-leap", {**ALONE, "flow__options__jumps": None, "flow__options__boundary": 0.0625, "flow__options__diagonal": 0.8}), 4, JUMPS),
    Ordering("leap", "jumps that hear the one before them before jumps that do not", ("flow-leap", {}), ("flow-leap", ALONE), 4, JUMPS),
    Ordering("leap", "the denoiser first before both at once", ("flow-leap", {}), ("flow-leap", {"flow__denoiser_first": None}), 4, JUMPS),
    Ordering("leap", "times that follow cross-entropy, and steps that close on them, before even ones", ("flow-leap", {}), ("flow-leap", UNIFORM), 4, JUMPS),
)  # fmt: skip


def needed() -> Iterator[tuple[str, Variant]]:
    """Every training that some ordering looks at, once."""
    seen = []
    for ordering in ORDERINGS:
        for one in (ordering.better, ordering.worse):
            if one not in seen:
                seen.append(one)
                yield one


def calls_of(one: tuple[str, Variant]) -> tuple[int, ...]:
    """Of the network, at which some ordering looks at samples of a training."""
    looks = (calls for o in ORDERINGS for side, calls in zip((o.better, o.worse), o.calls, strict=True) if side == one)
    return tuple(sorted({calls for calls in looks if calls is not None}))


def subject_of(one: tuple[str, Variant]) -> str:
    """As benchmarks.flow_runs.Planned has it."""
    return ", ".join([one[0], *(f"{key.split('__')[-1]} {value}" for key, value in one[1].items())])


Pairs = list[tuple[float, float]]


def bound_of(records: Sequence[dict[str, Any]], ordering: Ordering, side: int) -> float | None:
    """Of the records of one seed."""
    subject = subject_of((ordering.better, ordering.worse)[side])
    scored = [r for r in records if r["subject"] == subject and r["metric"] == "nll"]
    scored = [r for r in scored if r["contract"].get("block") in (None, ordering.blocks[side])]
    return scored[0]["value"] if scored else None


def samples_of(records: Sequence[dict[str, Any]], ordering: Ordering, side: int) -> Pairs:
    """Of the records of one seed: entropy and judge's NLL by knob, as the model was trained to be asked."""
    wanted = {"sampler": ordering.samplers[side], "nfe": ordering.calls[side]}
    if ordering.decoders[side]:
        wanted["decoder"] = ordering.decoders[side]
    by_knobs: dict[Knobs, dict[str, float]] = {}
    for r in records:
        contract = r["contract"]
        if r["subject"] != subject_of((ordering.better, ordering.worse)[side]):
            continue
        if contract.get("self_conditioning") is False or any(contract.get(k) != v for k, v in wanted.items()):
            continue
        by_knobs.setdefault(knobs(r), {})[r["metric"]] = r["value"]
    both = {turned: found for turned, found in by_knobs.items() if {"entropy", "judge_nll"} <= set(found)}
    return [(found["entropy"], found["judge_nll"]) for found in one_knob(both).values()]


def compared(records: Sequence[dict[str, Any]], ordering: Ordering) -> tuple[float | None, float, float] | None:
    """Of the records of one seed: (entropy, where samples are compared, the better side, the worse); None where a side is not there, and
    nan for both where no entropy is common to them."""
    if ordering.nfe is None:
        bounds = [bound_of(records, ordering, side) for side in (0, 1)]
        return None if None in bounds else (None, *bounds)  # type: ignore[return-value]
    lines = [samples_of(records, ordering, side) for side in (0, 1)]
    if not all(lines):
        return None
    return at_common(*lines) or (None, math.nan, math.nan)


def print_orderings(records: Sequence[dict[str, Any]]) -> None:
    print(
        "| on | source | claim | by | seeds | entropy | said to be better | the other | the other less the better | reproduced |"
    )
    print("|---" * 10 + "|")
    seeds = sorted({r["train_seed"] for r in records if r.get("train_seed") is not None})
    for on, ordering in product(dict.fromkeys(r["on"] for r in records), ORDERINGS):
        here = [r for r in records if r["on"] == on]
        by_seed = [compared([r for r in here if r.get("train_seed") == seed], ordering) for seed in seeds]
        found = [one for one in by_seed if one is not None]
        if not found:
            continue
        met = [one for one in found if not math.isnan(one[1])]
        apart, judged = verdict([worse - better for _, better, worse in met])
        told = [_mean([one[i] for one in met]) if met else "" for i in (0, 1, 2)]  # type: ignore[misc]
        cells = (
            on, ordering.source, ordering.claim, measured_by(here, ordering), f"{len(met)} of {len(found)}", *told, apart, judged,
        )  # fmt: skip
        print(f"| {' | '.join(cells)} |")


def measured_by(records: Sequence[dict[str, Any]], ordering: Ordering) -> str:
    if ordering.nfe is not None:
        calls = " and ".join(map(str, dict.fromkeys(ordering.calls)))
        return f"judge NLL, nfe {calls}"
    sides = {subject_of(ordering.better), subject_of(ordering.worse)}
    if any(r["subject"] in sides and r["contract"].get("block") for r in records):
        return f"bound, nats/token, blocks of {' and '.join(map(str, dict.fromkeys(ordering.blocks)))}"
    return "bound, nats/token"


def verdict(apart: Sequence[float]) -> tuple[str, str]:
    """apart: differences within a seed, more than 0 where the claim holds → (mean ± standard error over seeds, what that says by
    Student's t at 95%)."""
    if not apart:
        return "", "no entropy in common"
    mean, error = mean_error(apart)
    if len(apart) == 1:
        return f"{mean:.3f}", f"one seed, {'so' if mean > 0 else 'not so'} there"
    far = float(t.ppf(0.975, len(apart) - 1)) * error
    return f"{mean:.3f} ± {error:.3f}", "yes" if mean > far else "no" if mean < -far else "not told apart"


def _mean(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{sum(known) / len(known):.3f}" if known else ""
