"""How likely a drafted token is to stand, told from the head's own conditionals without a pass of the trunk.

Given that all tokens before it were kept, the token rule keeps position k with probability

    α_k = Σ_v min(p, q)(v)  before x_k is drawn,    a_k = min(1, p(x_k) / q(x_k))  after.

Both are estimated from a handful of numbers of q(· | x_<k): a logistic regression for each position, then one monotone
map that calibrates it. Each needs its own fit, `eval/calibration.py`; what is kept is a JSON file of a few hundred
numbers. The head's law is read before temperature and top-p, so that greedy drafts say something too; acceptance is
that of the law really drawn from, and so a fit belongs to one `Warp`.

Shapes: N rows, n = K−1 drafted positions after the block's first token, F features.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowmap.warp import Warp
from mtp.heads.base import Draft

FEATURES = ("entropy", "log_max", "log_collision", "log_before", "log_drawn")
"""Of position k: Σ −q log q, max log q, log Σ q², log q(x_{k−1}), and log q(x_k), the only one that looks at x_k."""


def features(draft: Draft, first: int = 0) -> Tensor:
    """(N, n − first, F), in nats: positions 2..K of the draft but the first so many. Before the last of them all are
    known when x_k is not."""
    laws = torch.stack([logits.float().log_softmax(-1) for logits in draft.logits[first:]], 1)
    told = laws.gather(-1, draft.tokens[:, first:, None])[..., 0]
    laws = laws[:, 1:]
    surprise = torch.where(laws.isfinite(), laws * laws.exp(), 0.0)
    columns = (-surprise.sum(-1), laws.amax(-1), (2 * laws).logsumexp(-1), told[:, :-1], told[:, 1:])
    return torch.stack(columns, -1).clamp(-50, 50)


@dataclass(frozen=True)
class Estimate:
    """weight: (n, F') and bias: (n,) of a logistic regression at each position; knots, values: (M,), ascending, the
    line from one to the next that takes its logit to a probability, level beyond them."""

    weight: Tensor
    bias: Tensor
    knots: Tensor
    values: Tensor

    def logit(self, x: Tensor) -> Tensor:
        """x: (N, n', F') with n' ≤ n → (N, n')."""
        n = x.shape[1]
        return (x * self.weight[:n]).sum(-1) + self.bias[:n]

    def __call__(self, x: Tensor) -> Tensor:
        """(N, n', F') → probabilities (N, n')."""
        logit = self.logit(x).contiguous()
        right = torch.searchsorted(self.knots, logit).clamp(1, len(self.knots) - 1)
        low, high = self.knots[right - 1], self.knots[right]
        share = ((logit - low) / (high - low)).clamp(0, 1)
        return self.values[right - 1].lerp(self.values[right], share)


@dataclass(frozen=True)
class Confidence:
    """before: of α_k, from all features but the last; after: of a_k, from all."""

    before: Estimate
    after: Estimate
    warp: Warp

    def estimates(self, draft: Draft) -> tuple[Tensor, Tensor]:
        """(N, n): α_k and a_k of the positions drafted."""
        return self._estimates(features(draft))

    def _estimates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[1] > len(self.after.bias):
            raise ValueError(f"this estimate was fitted for blocks of at most {len(self.after.bias) + 1} tokens")
        return self.before(x[..., :-1]), self.after(x)

    def submitted(self, draft: Draft, threshold: float, drawn: bool = False) -> Tensor:
        """(N, n): True up to where a row's draft ends, before the first x_k with Π_{j<k} a_j · α_k < threshold: the
        chance that x_k and all before it stand, from what is known when x_k is not yet drawn. drawn: Π_{j≤k} a_j,
        which looks at x_k itself, and so changes the law of what is left."""
        return self.within(features(draft), threshold, drawn)

    def within(self, x: Tensor, threshold: float, drawn: bool = False) -> Tensor:
        """As `submitted`, of a draft's features."""
        before, after = self._estimates(x)
        chance = after.cumprod(1)
        if not drawn:
            chance = before * torch.nn.functional.pad(chance[:, :-1], (1, 0), value=1.0)
        return (chance >= threshold).long().cumprod(1).bool()

    def to(self, device: torch.device) -> "Confidence":
        before, after = (
            Estimate(**{name: part.to(device) for name, part in vars(one).items()}) for one in (self.before, self.after)
        )
        return Confidence(before, after, self.warp)

    def save(self, folder: Path) -> Path:
        """Beside a model's weights, under the warp's name."""
        parts = {name: {k: v.tolist() for k, v in vars(getattr(self, name)).items()} for name in ("before", "after")}
        file = folder / file_name(self.warp)
        file.write_text(json.dumps({"features": FEATURES, "warp": vars(self.warp), **parts}) + "\n")
        return file


class Watch:
    """Looks at one draft as it grows; see `Confidence.submitted`. Each position's features are made once."""

    def __init__(self, confidence: Confidence, threshold: float, drawn: bool) -> None:
        self.confidence, self.threshold, self.drawn = confidence, threshold, drawn
        self.x: list[Tensor] = []

    def submitted(self, draft: Draft) -> Tensor:
        known = sum(x.shape[1] for x in self.x)
        if known < draft.tokens.shape[1] - 1:
            self.x.append(features(draft, known))
        return self.confidence.within(torch.cat(self.x, 1), self.threshold, self.drawn)

    def ended(self, draft: Draft) -> bool:
        """No row's draft goes beyond the last position drawn, nor takes it in."""
        return not bool(self.submitted(draft)[:, -1].any())


def file_name(warp: Warp) -> str:
    return "confidence" + "".join(f"-{name}-{value:g}" for name, value in vars(warp).items()) + ".json"


def load_confidence(folder: Path, warp: Warp) -> Confidence:
    """The estimate fitted for this warp. ValueError where there is none."""
    file = folder / file_name(warp)
    if not file.is_file():
        raise ValueError(
            f"{folder} has no acceptance estimate for temperature {warp.temperature:g} and top-p {warp.top_p:g}: "
            f"fit one with leaplm accept RUN --calibrate --temperatures {warp.temperature:g} --top-p {warp.top_p:g}"
        )
    again = "fit it again with leaplm accept RUN --calibrate"
    try:
        held: dict[str, Any] = json.loads(file.read_text())
        known = tuple(held["features"]) == FEATURES
        before, after = (
            Estimate(**{name: torch.tensor(values) for name, values in held[part].items()})
            for part in ("before", "after")
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} holds no estimate: {again}") from error
    if not known:
        raise ValueError(f"{file} was fitted on other features: {again}")
    return Confidence(before, after, warp)
