"""Self-conditioning inside a step: every answer is asked for twice, the second time knowing what the first expected.

    ĉ = Cᵀ p(x_t, t, t),   p_{t→s}(x_t | sg ĉ)                     (2208.04202; math.md §4)

The estimate is made anew from x_t alone, never carried over from the step before, so that the answer stays a function of
(x_t, t, s): objectives, samplers and likelihoods take a `TwoPass` for the map it is made of. A network that was trained
with a share of the samples only has the path without it as well, at half the price.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowmap.rng import Rng


@dataclass(frozen=True)
class TwoPass:
    """model: a token map whose network reads self_cond. told: (B,) bool, rows that are asked twice; None: all. through: let
    gradients into the first pass too, for a divergence; training keeps them out."""

    model: Any
    told: Tensor | None = None
    through: bool = False
    passes: ClassVar[int] = 2

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def logits(self, x_t: Tensor, t: Tensor, s: Tensor, context: Any = None) -> Tensor:
        """As the map's own. Tangents of forward mode go through the first pass in any case."""
        return self._ask(self.model.logits, x_t, t, s, context)

    def _ask(self, ask: Callable[..., Tensor], x_t: Tensor, t: Tensor, s: Tensor, context: Any) -> Tensor:
        rows = None if self.told is None else torch.nonzero(self.told)[:, 0]
        if rows is not None and not len(rows):
            return ask(x_t, t, s, context)
        asked = (x_t, t, context) if rows is None else (x_t[rows], t[rows], None if context is None else context[rows])
        with contextlib.nullcontext() if self.through else torch.no_grad():
            guess = self.model.endpoint(asked[0], asked[1], asked[1], asked[2])
        if rows is not None:
            guess = placed(guess, rows, x_t)
        return ask(x_t, t, s, context, self_cond=guess)

    def endpoint(self, x_t: Tensor, t: Tensor, s: Tensor, context: Any = None) -> Tensor:
        return self._ask(self.model.endpoint, x_t, t, s, context)

    def velocity(self, x_t: Tensor, t: Tensor, s: Tensor, context: Any = None) -> Tensor:
        return self.model.path.secant(x_t, self.endpoint(x_t, t, s, context), t)

    def jump(self, x_t: Tensor, t: Tensor, s: Tensor, context: Any = None) -> Tensor:
        return self.model.path.jump(x_t, self.endpoint(x_t, t, s, context), t, s)


def placed(guess: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """Estimates of these rows among all, (B, N, d); zero, which the network reads as none, for the others."""
    return torch.zeros_like(like, dtype=guess.dtype).index_copy(0, rows, guess)


def drawn(rng: Rng, count: int, share: float) -> Tensor | None:
    """Which samples of a batch are asked twice; None where none is."""
    return rng.uniform("self-conditioning", count) < share if share else None


def asked(model: Any, told: Tensor | None) -> Any:
    """The map that answers these rows by two passes; itself where told is None."""
    return model if told is None else TwoPass(model, told)
