"""Block likelihood as records: per position, in mean, the gap closed, and what the head costs."""

from typing import TYPE_CHECKING, Any

import torch

from eval.likelihood import DRAWS, BlockLikelihood, gap_closed, standard_error
from eval.records import record
from eval.speed.floor import flop_counter
from flowmap.warp import Warp

if TYPE_CHECKING:
    from eval.loading import LoadedRun


def block_records(
    run: "LoadedRun",
    result: BlockLikelihood,
    on: str,
    independent: BlockLikelihood | None = None,
    context: int | None = None,
) -> list[dict[str, Any]]:
    """Head and trunk on the same targets. independent: that head's result on the same trunk, for the
    share of the gap closed, which means nothing without the trunk's own NLL and the head's size beside it. Of a head
    that is not exact, what starts at position 1 or 2 is a bound, and a later position alone an estimate."""
    size = result.head.shape[1]
    last = f"2-{size}"
    contract = {"block": size, "steps": 1, "nfe": 1, "dtype": "float32", "ema": run.ema, "context": context}
    common: dict[str, Any] = {"on": on, "split": "validation", "run": run.name, "train_seed": run.train_seed}
    common |= {"kind": "exact", "contract": contract, "n": int(result.count.sum())}
    documents: dict[str, Any] = {"stderr_over": "documents", **common}
    records = []
    bound = law_kind(run)
    for subject, sums, kind in ((run.subject, result.head, bound), ("trunk", result.trunk, {"kind": "exact"})):
        spans = {str(k + 1): [k] for k in range(size)} | {last: list(range(1, size))}
        for positions, columns in spans.items():
            part = sums[:, columns].mean(1)
            error = standard_error(part, result.count)
            value = part.sum() / result.count.sum()
            nats: dict[str, Any] = {**documents, "subject": subject, "stderr": error, "unit": "nats/token", **kind}
            if subject == "trunk":
                nats["train_seed"] = run.trunk_seed
            later = {"kind": "estimate"} if kind["kind"] == "bound" and columns[0] > 1 else {}
            records.append(record("nll", value, positions=positions, **(nats | later)))
        whole = sums.mean(1)
        value, error = whole.sum() / result.count.sum(), standard_error(whole, result.count)
        noise: dict[str, Any] = (
            {} if subject == "trunk" or result.monte_carlo is None else {"monte_carlo": result.monte_carlo}
        )
        records.append(record("block_nll", value, **{**nats, "stderr": error}, **noise))
    if independent is not None:
        share, error = gap_closed(independent, result)
        records.append(
            record(
                "gap_closed",
                share,
                subject=run.subject,
                stderr=error,
                unit="fraction",
                positions=last,
                **(documents | bound),
            )
        )
    head_flops, trunk_flops = flops(run, size)
    head_size, trunk_size = (sum(p.numel() for p in part.parameters()) for part in (run.head, run.model.trunk))
    for subject, size, cost, unit in (
        (run.subject, head_size, head_flops, "FLOP/block"),
        ("trunk", trunk_size, trunk_flops, "FLOP/token"),
    ):
        records.append(record("parameters", size, subject=subject, unit="parameters", **common))
        records.append(record("flops", cost, subject=subject, unit=unit, **common))
    return records


def law_kind(run: "LoadedRun") -> dict[str, Any]:
    """Of a record about the head's law: exact, or a bound and from how many draws of the noise."""
    return {"kind": "exact"} if run.head.exact else {"kind": "bound", "draws": DRAWS}


@torch.no_grad()
def flops(run: "LoadedRun", block_size: int | None = None, window: int = 256) -> tuple[int, int]:
    """Forward FLOPs of the head for a block of K tokens (position 1 is the trunk's), and of the trunk
    for a token of a window, its unembedding included. A head that is not exact is counted as it draws."""
    ids = torch.zeros(1, window, dtype=torch.int64, device=run.model.device)
    with flop_counter() as trunk:
        run.model.trunk(ids)
    hidden, _ = run.model.states(ids[:, :1])
    context = run.model.anchored(hidden, ids, torch.ones(1, 1, dtype=torch.bool, device=ids.device))
    size = block_size or run.block_size
    with flop_counter() as whole:
        if run.head.exact:
            run.head.log_prob(context, ids[:, :size])
        else:
            run.head.sample(
                context, Warp(), noise=torch.full_like(ids[:, :size], 0.5, dtype=torch.float32), block_size=size
            )
    with flop_counter() as first:
        context.first_logits()
    return whole.get_total_flops() - first.get_total_flops(), trunk.get_total_flops() // window
