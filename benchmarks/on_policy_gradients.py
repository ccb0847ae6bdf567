"""The on-policy gradients beside the exact one, at the real vocabulary: which way they point, how far off, how noisy.

    python -m benchmarks.on_policy_gradients [--seed 0] [--kept]

Of the head that benchmarks.on_policy begins with, all its parameters, at 16 anchors of held-out text whose x_1 is known,
from four draws at each, over many repeats:

    K = 2   exact by enumeration: of one drawn position all V outcomes, for the energy all V² pairs
    K = 8   the mean of as many repeats again of the least noisy unbiased estimator, rloo with own tokens summed out where
            that exists; an estimate, of which the row "reference" tells how well its two halves agree

    cosine     of one estimate with that gradient, mean over repeats; of = "mean": of the repeats' mean
    bias       ‖mean − exact‖ / ‖exact‖, which noise of √(variance / repeats) alone would give too
    variance   tr Var of one estimate / ‖exact‖²

The cell lies in benchmarks/results/on_policy/.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks.cells import cell
from benchmarks.heads import text_config
from benchmarks.on_policy import HEAD, ON, RESULTS, train_first
from eval.loading import LoadedRun, load_run
from eval.records import record
from eval.samples import held_out_windows
from flowmap.kernels import distances
from flowmap.rng import Rng
from mtp.heads.base import BlockContext, JointHead
from mtp.losses.on_policy import KINDS, asks_trunk, energy_policy, trunk_policy
from mtp.losses.rollout import states_after
from training.config import load_preset, override, to_dict

ANCHORS, LENGTH, SAMPLES, REPEATS = 16, 64, 4, 100
BLOCKS = (2, 8)
REFERENCE = {
    "accepted": "rloo-overlap",
    "overlap": "rloo-overlap",
    "score": "rloo-kl",
    "kl": "rloo-kl",
    "energy": "rloo-energy",
}


@dataclass(frozen=True)
class Place:
    """What gradients are taken at. targets: (N, K), the text. read: what the trunk says of drawn blocks."""

    head: JointHead
    ctx: BlockContext
    targets: Tensor
    read: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, run: LoadedRun, block: int) -> "Place":
        """One anchor at the end of each of ANCHORS windows."""
        windows = torch.from_numpy(held_out_windows(run, ANCHORS, LENGTH + block))
        with torch.no_grad():
            hidden, cache = run.model.states(windows[:, :LENGTH], use_cache=True)
        place = torch.full((ANCHORS, 1), LENGTH - 1)

        def read(blocks: Tensor) -> Tensor:
            states = states_after(run.model, cache, LENGTH, place, blocks)
            cache.crop(-blocks[0].numel())
            return states

        run.model.trunk.requires_grad_(False)
        return cls(run.head, run.model.context(hidden[:, -1]), windows[:, LENGTH:], read)

    def estimate(self, kind: str, repeat: int) -> Tensor:
        rng = Rng(0, torch.arange(ANCHORS), repeat)
        if asks_trunk(kind):
            size, first = self.targets.shape[1], self.targets[:, 0]
            policy = trunk_policy(self.head, self.ctx, kind, SAMPLES, self.read, rng, size=size, first=first)
        else:
            mask = torch.ones_like(self.targets, dtype=torch.bool)
            policy = energy_policy(self.head, self.ctx, kind, SAMPLES, self.targets, mask, rng)
        return self.gradient(policy.loss.mean())

    def gradient(self, value: Tensor) -> Tensor:
        parameters = list(self.head.parameters())
        found = torch.autograd.grad(value, parameters, allow_unused=True)
        return torch.cat(
            [(p * 0 if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
        ).detach()

    def exact(self, what: str) -> Tensor:
        """K = 2: the objective as a sum over all tokens of the one drawn position."""
        log_q = self.head.law(self.ctx, self.targets[:, :2])[:, 0]
        q = log_q.exp()
        if what == "energy":
            codes = F.normalize(self.ctx.embedding.detach().float(), dim=-1)
            apart = distances(codes, codes) / codes.shape[1] ** 0.5
            return self.gradient((2 * (q * apart[self.targets[:, 1]]).sum(-1) - ((q @ apart) * q).sum(-1)).mean())
        states = self.read(self.targets[:, None, :1])[:, 0, 0]
        log_p = F.linear(states, self.ctx.unembedding, self.ctx.bias).log_softmax(-1)
        if what in ("accepted", "overlap"):
            return self.gradient(-torch.minimum(q, log_p.exp()).sum(-1).mean())
        return self.gradient((q * (log_q - log_p)).sum(-1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/heads"))
    parser.add_argument("--kept", action="store_true", help="the table of the cell that is there; measures nothing")
    args = parser.parse_args()
    command = ["python", "-m", "benchmarks.on_policy_gradients", *sys.argv[1:]]
    trunk, seed = args.runs / ON / f"trunk-{args.seed}", args.seed

    def measure() -> list[dict[str, Any]]:
        train_first(seed, args.runs)
        run = load_run(str(args.runs / ON / f"{HEAD}-{seed}"))
        return [r for block in BLOCKS for r in compared(run, block)]

    inputs = {
        "trunk": to_dict(override(load_preset(f"{ON}-trunk"), seed=seed)),
        "head": to_dict(override(text_config(ON, HEAD, seed, trunk), trunk__pretrained="trunk")),
        "sizes": [ANCHORS, LENGTH, SAMPLES, REPEATS], "blocks": list(BLOCKS),
    }  # fmt: skip
    print_table(cell(RESULTS / f"{ON}-gradients-{seed}.json", inputs, command, measure, args.kept))


def compared(run: LoadedRun, block: int) -> list[dict[str, Any]]:
    place = Place.of(run, block)
    records: list[dict[str, Any]] = []
    references: dict[str, Tensor] = {}
    common: dict[str, Any] = {
        "on": ON, "unit": "1", "kind": "estimate", "n": REPEATS, "run": run.name, "train_seed": run.train_seed,
        "contract": {"block": block, "samples": SAMPLES, "anchors": ANCHORS, "dtype": "float32"},
    }  # fmt: skip
    for kind in tqdm(KINDS, desc=f"gradients, K = {block}"):
        what = kind.removeprefix("reinforce-").removeprefix("rloo-") if asks_trunk(kind) else "energy"
        by = REFERENCE[what]
        if by not in references:
            if block == 2:
                references[by] = place.exact(what)
            else:  # repeats of its own
                halves = [mean(place.estimate(by, REPEATS + 2 * r + h) for r in range(REPEATS // 2)) for h in (0, 1)]
                references[by] = (halves[0] + halves[1]) / 2
                agree = float(F.cosine_similarity(*halves, 0))
                records.append(record("cosine", agree, subject=by, **common | {"of": "reference"}))
        exact = references[by]
        scale, centre, square, cosines = exact.norm(), torch.zeros_like(exact), 0.0, []
        for repeat in range(REPEATS):
            made = place.estimate(kind, repeat)
            centre += made / REPEATS
            square += float(made.square().sum()) / REPEATS
            cosines.append(float(F.cosine_similarity(made, exact, 0)))
        own = {**common, "subject": kind}
        told = torch.tensor(cosines)
        error = float(told.std()) / REPEATS**0.5
        variance = (square - float(centre.square().sum())) * REPEATS / (REPEATS - 1) / float(scale) ** 2
        records += [
            record("cosine", float(told.mean()), stderr=error, stderr_over="samples", **own, of="one"),
            record("cosine", float(F.cosine_similarity(centre, exact, 0)), **own, of="mean"),
            record("bias", float((centre - exact).norm() / scale), **own),
            record("variance", variance, **own),
        ]
    return records


def mean(gradients) -> Tensor:
    total, count = None, 0
    for gradient in gradients:
        total, count = gradient if total is None else total + gradient, count + 1
    return total / count


def print_table(records: list[dict[str, Any]]) -> None:
    print(
        "| estimator | K | cosine of one | cosine of the mean | bias | noise of the mean | variance |\n|---|---|---|---|---|---|---|"
    )
    for kind, block in dict.fromkeys((r["subject"], r["contract"]["block"]) for r in records if r["metric"] == "bias"):
        own = [r for r in records if (r["subject"], r["contract"]["block"]) == (kind, block)]
        one, whole, bias, variance = (
            next(r["value"] for r in own if r["metric"] == metric and r.get("of") == of)
            for metric, of in (("cosine", "one"), ("cosine", "mean"), ("bias", None), ("variance", None))
        )
        noise = (variance / REPEATS) ** 0.5
        print(f"| {kind} | {block} | {one:.3f} | {whole:.3f} | {bias:.3f} | {noise:.3f} | {variance:.3g} |")
    for r in records:
        if r.get("of") == "reference":
            print(
                f"K = {r['contract']['block']}: halves of the mean of {r['subject']} agree to a cosine of {r['value']:.3f}"
            )


if __name__ == "__main__":
    main()
