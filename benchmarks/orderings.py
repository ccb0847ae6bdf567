"""The orderings that published flow language models claim against their own ablations, as pairs of cells of benchmarks.flow_text.

A row says which of two trainings its source found better, and by what they are compared here: the bound in nats a token, or the
judge's NLL of samples, at temperature 1 unless it says so, in so many calls of the network. Shared sizes, budget and seeds; one name differs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from eval.records import seeds_mean

Variant = dict[str, Any]


@dataclass(frozen=True)
class Ordering:
    """better, worse: (preset, what is set in it). nfe: calls of the network of the samples judged, None: the bound. samplers, decoders:
    that wrote them, "": the only one. temperature: of the draws. block: of a model of several lengths, whose single tokens are an
    autoregressive model whatever it is else."""

    source: str
    claim: str
    better: tuple[str, Variant]
    worse: tuple[str, Variant]
    nfe: int | None = None
    samplers: tuple[str, str] = ("", "")
    decoders: tuple[str, str] = ("", "")
    temperature: float = 1.0
    block: int = 16


EULER, JUMPS = ("ddim", "ddim"), ("pushforward", "pushforward")
UNIFORM: Variant = {"flow__options__times": "uniform"}
ONE_PASS: Variant = {"flow__options__self_conditioning": 0.0}
ORDERINGS = (
    Ordering("flm", "cross-entropy before regression of the endpoint", ("flow-flm", {}), ("flow-flm", {"flow__objective": "endpoint"}), 16, EULER),
    Ordering("flm", "times where tokens are decided before uniform ones", ("flow-flm", {}), ("flow-flm", UNIFORM), 16, EULER),
    Ordering("fmlm", "semigroup distillation before Lagrangian, one step", ("flow-fmlm", {}), ("flow-fmlm", {"flow__objective": "lsd", "flow__options__boundary": None}), 1, JUMPS),
    Ordering("dfm", "ESD before PSD at four steps", ("flow-dfm-esd", {}), ("flow-dfm-psd", {}), 4, JUMPS),
    Ordering("dfm", "PSD before ESD at one step", ("flow-dfm-psd", {}), ("flow-dfm-esd", {}), 1, JUMPS),
    Ordering("dfm", "PSD whose gradient gives way to the denoiser's", ("flow-dfm-psd", {"flow__project": True}), ("flow-dfm-psd", {}), 4, JUMPS),
    Ordering("plaid", "the matched filter before none", ("flow-plaid", {}), ("flow-plaid", {"flow__prior": False})),
    Ordering("plaid", "self-conditioning before none", ("flow-plaid", {}), ("flow-plaid", ONE_PASS)),
    Ordering("plaid", "a learned schedule before an even one", ("flow-plaid", {}), ("flow-plaid", UNIFORM)),
    Ordering("plaid", "learned codes before codes as drawn", ("flow-plaid", {}), ("flow-plaid", {"flow__learn_codes": False})),
    Ordering("plaid", "the bound alone before cross-entropy added", ("flow-plaid", {}), ("flow-plaid", {"flow__options__cross_entropy": 1.0})),
    Ordering("cdcd", "times warped by cross-entropy before uniform ones", ("flow-cdcd", {}), ("flow-cdcd", UNIFORM), 16, EULER),
    Ordering("langflow", "self-conditioning before none", ("flow-langflow", {}), ("flow-langflow", ONE_PASS), 16, EULER),
    Ordering("codar", "a contextual decoder before the softmax", ("flow-codar", {}), ("flow-codar", {"flow__decoder": "softmax"}), 16, EULER, ("contextual", "")),
    Ordering("codar", "a contextual decoder before the nearest code", ("flow-codar", {}), ("flow-codar", {}), 16, EULER, ("contextual", "nearest"), 0.0),
    Ordering("flowlm-adapt", "fine-tuned before trained from scratch", ("flow-adapt", {}), ("flow-adapt", {"flow__start": None}), 4, EULER),
    Ordering("bd3lm", "times clipped before all times", ("flow-bd3lm", {"flow__options__least": 0.3, "flow__options__most": 0.8}), ("flow-bd3lm", {})),
    Ordering("mdlm", "blocks before whole windows", ("flow-bd3lm", {}), ("flow-mdlm", {})),
    Ordering("mdlm", "autoregressive before blocks", ("flow-ar", {}), ("flow-bd3lm", {})),
    Ordering("leap", "the denoiser's gradient first", ("flow-leap", {}), ("flow-leap", {"flow__project": False}), 4, JUMPS),
    Ordering("leap", "times that follow cross-entropy before uniform ones", ("flow-leap", {}), ("flow-leap", UNIFORM), 4, JUMPS),
)  # fmt: skip


def needed() -> Iterator[tuple[str, Variant]]:
    """Every training that some ordering looks at, once."""
    seen = []
    for ordering in ORDERINGS:
        for one in (ordering.better, ordering.worse):
            if one not in seen:
                seen.append(one)
                yield one


def subject_of(one: tuple[str, Variant]) -> str:
    """As benchmarks.flow_runs.Planned has it."""
    return ", ".join([one[0], *(f"{key.split('__')[-1]} {value}" for key, value in one[1].items())])


def value_of(records: Sequence[dict[str, Any]], ordering: Ordering, side: int) -> dict[str, Any] | None:
    """The number compared, over seeds."""
    subject = subject_of((ordering.better, ordering.worse)[side])
    own = [r for r in records if r["subject"] == subject]
    if ordering.nfe is None:
        scored = [r for r in own if r["metric"] == "nll"]
        scored = [r for r in scored if r["contract"].get("block") in (None, ordering.block)]
        return seeds_mean(scored) if scored else None
    wanted = {"sampler": ordering.samplers[side], "nfe": ordering.nfe, "temperature": ordering.temperature}
    if ordering.decoders[side]:
        wanted["decoder"] = ordering.decoders[side]
    judged = [
        r
        for r in own
        if r["metric"] == "judge_nll"
        and all(r["contract"].get(k) == v for k, v in wanted.items())
        and r["contract"].get("self_conditioning") is not False  # as the model was trained to be asked
    ]
    return seeds_mean(judged) if judged else None


def print_orderings(records: Sequence[dict[str, Any]]) -> None:
    print("| source | claim | by | the one said to be better | the other | reproduced |")
    print("|---" * 6 + "|")
    for ordering in ORDERINGS:
        found = [value_of(records, ordering, side) for side in (0, 1)]
        if None in found:
            continue
        better, worse = (r for r in found if r is not None)
        by = (
            "bound, nats/token"
            if ordering.nfe is None
            else f"judge NLL, nfe {ordering.nfe}, T = {ordering.temperature:g}"
        )
        if any(r["contract"].get("block") for r in found if r is not None):
            by += f", blocks of {ordering.block}"
        error = sum(r.get("stderr", 0.0) ** 2 for r in (better, worse)) ** 0.5
        apart = worse["value"] - better["value"]
        verdict = "yes" if apart > 2 * error else "no" if apart < -2 * error else "not told apart"
        if not error:
            verdict = f"one seed, {'so' if apart > 0 else 'not so'} there"
        cells = " | ".join(f"{r['value']:.3f} ± {r.get('stderr', 0.0):.3f}" for r in (better, worse))
        print(f"| {ordering.source} | {ordering.claim} | {by} | {cells} | {verdict} |")
