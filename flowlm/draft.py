"""What the samplers of the core ask of a token map: endpoints of its softmaxes, with and without what is known, every call counted."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowlm.token_map import Known, TokenContext, TokenMap
from flowmap.samplers import Guided
from flowmap.self_conditioning import TwoPass

Watcher = Callable[[Tensor], None]
"""Hears tokens as they stand, (rows, n), of the rows that have not ended."""


class Draft(Guided):
    """A token map, or two passes of one, behind a sampler's calls. watch: hears every estimate. score_temperature τ: the samplers head for the
    codes expected under p^{1/τ}; tokens are drawn, and decoders read, what p itself says, and so does a first pass. carrying: every
    call is told the codes that the jump before it expected, by p itself, and where it is remembering what the same branch of that left in memory. guidance w: the samplers walk by
    g_0 + w·(g_c − g_0), g_0 where nothing that is known is shown, and tokens are drawn from p ∝ p_0^{1−w} p_c^w."""

    def __init__(
        self, model: TokenMap | TwoPass, context: TokenContext | None, watch: Watcher | None, guidance: float = 1.0,
        score_temperature: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(
            model, context, None if guidance == 1 or context is None else context.known.without(), guidance
        )
        self.passes, self.finishes = getattr(model, "passes", 1), getattr(model, "finishes", False)
        self.watch, self.decoder_calls, self.score_temperature = watch, 0, score_temperature
        self.carrying = self.remembering = False
        self.carried: Tensor | None = None
        self.memories: list[Tensor] = []

    @torch.no_grad()
    def logits(self, x: Tensor, t: Tensor, s: Tensor, copies: int = 1) -> Tensor:
        """(batch, length, V)."""
        return self.mixed(*self.answers(x, t, s, copies))

    def answers(self, x: Tensor, t: Tensor, s: Tensor, copies: int = 1) -> list[Tensor]:
        """Logits of every branch."""
        self.count(copies * self.passes)
        contexts = self.branches(len(x), copies)
        z = self.told(x, t, s, contexts) if self.carrying else [self.model.logits(x, t, s, c) for c in contexts]
        if self.watch is not None:  # of several times at once, the last
            self.watch(self.mixed(*z).argmax(-1)[copies - 1 :: copies])
        return z

    def told(self, x: Tensor, t: Tensor, s: Tensor, contexts: Sequence[Any]) -> list[Tensor]:
        """The same of a map that is told what the jump before left."""
        told: list[Tensor | None] = [self.carried] * len(contexts)
        if self.carried is not None and self.remembering:
            told = [torch.cat([self.carried, memory], -1) for memory in self.memories]
        said = [self.model.logits_and_memory(x, t, s, *each) for each in zip(contexts, told, strict=True)]
        self.memories = [memory for _, memory in said]
        return [logits for logits, _ in said]

    def know(self, known: Known) -> None:
        """From now on, of the map's own states."""
        self.context = self.context.knowing(known)
        if self.without is not None:
            self.without = self.without.knowing(known)

    def velocity(self, x: Tensor, t: Tensor, s: Tensor, copies: int = 1) -> Tensor:
        return self.path.secant(x, self.heading(x, t, s, copies), t)

    def jump(self, x: Tensor, t: Tensor, s: Tensor, told: Tensor | None = None) -> Tensor:
        return self.path.jump(x, self.heading(x, t, s if told is None else told), t, s)

    def heading(self, x: Tensor, t: Tensor, s: Tensor, copies: int = 1, heated: bool = True) -> Tensor:
        """g. heated: by the score temperature; what a decoder reads is not."""
        if self.finishes:
            self.count(copies * self.passes)
            with torch.no_grad():
                found = [self.model.endpoint(x, t, s, context) for context in self.branches(len(x), copies)]
            return self.mixed(*found).to(x.dtype)
        answers = self.answers(x, t, s, copies)
        ends = self.ends(answers, x, heated)
        if self.carrying:
            self.carried = ends if self.score_temperature == 1 else self.ends(answers, x, heated=False)
        return ends

    def ends(self, answers: list[Tensor], x: Tensor, heated: bool = True) -> Tensor:
        """g of the logits of every branch."""
        tau = self.score_temperature if heated else 1.0
        tempered = answers if tau == 1 else [z / tau for z in answers]
        return self.mixed(*(self.path.expected(self.model.codebook, z, x).to(x.dtype) for z in tempered))

    @torch.no_grad()
    def read(self, landed: Tensor) -> Tensor:
        """Logits of finished states, (batch, length, V), in one pass whatever the others are made of."""
        self.count(1)
        model, now = getattr(self.model, "model", self.model), landed.new_zeros(len(landed))
        z = self.mixed(*(model.logits(landed, now, now, context) for context in self.branches(len(landed))))
        if self.watch is not None:
            self.watch(z.argmax(-1))
        return z
