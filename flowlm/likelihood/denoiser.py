"""What a likelihood is asked of: logits that are a function of the state, the times and the context, and of nothing else.

    p_θ(x^l | x_t, t, s, context),   x_t = α_t c + σ_t ε,   S = α²/(σ²ν²)                    (math.md §1, §5; t = 1 is noise)

`TokenMap` is one; `FromLogits` makes one of any function (x_t, t) → logits. Self-conditioning has its place inside
`logits`: two passes on the same x_t, the first one differentiated through. An estimate that is carried over from another
state has seen more of the text than x_t shows, and what is then added up bounds nothing: `check` refuses it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from flowmap.codebook import Codebook
from flowmap.path import Path, expand


class Denoiser(Protocol):
    """Shapes: B rows, N tokens, d of a code, V tokens of the vocabulary."""

    @property
    def codebook(self) -> Codebook: ...

    @property
    def path(self) -> Path: ...

    def logits(self, x_t: Tensor, t: Tensor, s: Tensor, context: Any = None) -> Tensor:
        """x_t: (B, N, d); t, s: (B,); context: indexable by rows, or None. → (B, N, V)."""
        ...


@dataclass(frozen=True)
class FromLogits:
    """function: (x_t, t) → logits. passes: network calls that one of them makes."""

    function: Callable[[Tensor, Tensor], Tensor]
    codebook: Codebook
    path: Path
    passes: int = 1

    def logits(self, x_t: Tensor, t: Tensor, s: Tensor, context: Any = None) -> Tensor:
        return self.function(x_t, t)


@dataclass(frozen=True)
class FromZero:
    """A denoiser that is shown z = 0 in the place of a state of S = 0, which says nothing of the text: a law of its own, with
    no noise to be averaged over where nothing else was drawn. Of blocks of one token behind clean text, read in no step at
    all, it is the autoregressive model that the same weights are."""

    model: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def logits(self, x_t: Tensor, t: Tensor, s: Tensor, context: Any = None) -> Tensor:
        return self.model.logits(x_t.masked_fill(expand(t == 1, x_t), 0.0), t, s, context)


def passes(model: Denoiser) -> int:
    """Network calls of one `logits`: 2 with self-conditioning inside."""
    return getattr(model, "passes", 1)


@torch.no_grad()
def check(model: Denoiser, tokens: Tensor, context: Any = None) -> None:
    """Ask about one state, about another, and about the first again. tokens: (B, N), of which one row is used. ValueError
    where the answers differ: of a network in training mode too."""
    one = tokens[:1]
    clean = model.codebook.encode(one)
    told = None if context is None else context[torch.arange(1, device=tokens.device)]
    t = torch.full((1,), 0.5).to(clean)
    first = model.logits(torch.zeros_like(clean), t, t, told)
    model.logits(model.path.noise(clean, torch.zeros_like(clean), t / 8), t / 8, t / 8, told)
    again = model.logits(torch.zeros_like(clean), t, t, told)
    if not torch.allclose(first, again, rtol=1e-4, atol=1e-4):
        raise ValueError(
            "the network's logits at one (x_t, t) changed after it was asked about another: a likelihood takes nothing "
            "carried between steps, nor dropout; compute self-conditioning from x_t alone, in two passes inside logits"
        )
