"""The two-time map over the codes of a window of tokens, some of which may be known.

    x_t = α_t c + σ_t ε                                          (t = 1 is noise; math.md §1, §4)
    logits of p_{t→s}(x_t) = G_θ(x_t, t, s)                      (+ prior(x_t, t), where asked for)
    X_{t→s}(x_t) = the jump towards Cᵀ p_{t→s}(x_t)

What is known (a prompt, the text around a gap) stands in the window as clean codes, each at time 0 of its own, and has
logits that leave no doubt: no loss, no likelihood and no noise fall on it, whatever objective or sampler asks.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from flowmap.backbone import Backbone
from flowmap.codebook import Codebook, in_full
from flowmap.maps import FlowMap
from flowmap.path import Path

CERTAIN = 1e9
"""Nats between a known token and any other: finite, so that 0 · log 0 is 0."""


Reader = Callable[..., Tensor]
"""(B, n) tokens, and where they are known, (B, n) bool, default everywhere → their codes as the backbone reads clean states,
(B, n, d)."""


@dataclass(frozen=True)
class Layout:
    """What the backbone is given, as its `forward` says it. x: (B, M, d), of which the last N are the map's own states."""

    x: Tensor
    t: Tensor
    s: Tensor
    self_cond: Tensor | None = None
    clean: Tensor | None = None
    mask: Tensor | None = None
    places: Tensor | None = None
    cache: Any = None


class TokenContext(Protocol):
    """What a map is told besides x_t; indexable by rows. known: of its own states."""

    @property
    def known(self) -> "Known": ...

    def lay_out(self, seen: Layout, read: Reader) -> Layout:
        """From the map's own states alone to all that the backbone looks at."""

    def settle(self, logits: Tensor) -> Tensor:
        """(B, N, V), certain where there is no doubt."""

    def knowing(self, known: "Known") -> "TokenContext":
        """The same, with this known of the map's own states."""


@dataclass(frozen=True)
class Known:
    """tokens: (B, N); at: (B, N) bool, where they are known. The others are not looked at. hidden: (B, N) bool, places whose
    known tokens the network is not shown, zeros standing there, though no doubt is left of them: a prompt that is dropped;
    None: nowhere."""

    tokens: Tensor
    at: Tensor
    hidden: Tensor | None = None

    def __getitem__(self, rows: Any) -> "Known":
        return Known(self.tokens[rows], self.at[rows], None if self.hidden is None else self.hidden[rows])

    def to(self, device: torch.device) -> "Known":
        hidden = None if self.hidden is None else self.hidden.to(device)
        return Known(self.tokens.to(device), self.at.to(device), hidden)

    @property
    def known(self) -> "Known":
        return self

    def knowing(self, known: "Known") -> "Known":
        return replace(known, hidden=self.hidden)

    def without(self) -> "Known":
        """The same with nothing of it shown."""
        return replace(self, hidden=self.at)

    def lay_out(self, seen: Layout, read: Reader) -> Layout:
        shown = self.at if self.hidden is None else self.at & ~self.hidden
        x, told = torch.where(shown[..., None], read(self.tokens, shown).to(seen.x), seen.x), seen.self_cond
        if self.hidden is not None:
            blind = (self.at & self.hidden)[..., None]
            x, told = x.masked_fill(blind, 0.0), None if told is None else told.masked_fill(blind, 0.0)
        return replace(seen, x=x, self_cond=told, clean=self.at)

    def settle(self, logits: Tensor) -> Tensor:
        sure = -CERTAIN * (torch.arange(logits.shape[-1], device=logits.device) != self.tokens[..., None])
        return torch.where(self.at[..., None], sure.to(logits), logits)


class TokenMap(FlowMap):
    """What objectives on tokens and samplers expect of a model; their context is `Known`, `blocks.Blocks`, or None
    where nothing is known.

    prior: add the matched filter, what x_t says of a token by itself (math.md §4): right where tokens are independent, and
    where they are not a base that the network has first to unlearn. t_min: the least time at which the filter, which grows as 1/σ², is taken as it stands. causal: no
    state of a window looks at those behind it. carries: a jump hears what the one before it expected. memory: numbers of a state that the network writes behind the logits, for the jump
    after it alone; jumps: how many it was taught to make so, one after the other. rounding: a decoder of finished states, where one is trained along."""

    network: Backbone
    prior_share: Tensor | None
    rounding: Any
    finishes: ClassVar[bool] = False
    """Whether tokens are read in a pass of their own, off states that are finished."""

    def __init__(
        self, network: Backbone, path: Path, codebook: Codebook, data_scale: float, prior: bool = False, t_min: float = 1e-3,
        causal: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(network, path, data_scale=data_scale, codebook=codebook)
        self.prior, self.t_min, self.causal = prior, t_min, causal
        self.carries, self.memory, self.jumps, self.rounding = False, 0, 1, None
        self.register_buffer("prior_share", None)

    def ramp_prior(self) -> None:
        """Give the filter a share of itself, 0 until someone fills it: training brings it in so. Never of a saved model."""
        self.prior_share = torch.zeros((), device=self.network.read.weight.device)

    def logits(
        self, x_t: Tensor, t: Tensor, s: Tensor, context: TokenContext | None = None, self_cond: Tensor | None = None
    ) -> Tensor:
        """(B, N, V) in fp32 or better. t, s: (B,), or (B, N) of each token. self_cond: (B, N, d), or d + memory."""
        return self.logits_and_memory(x_t, t, s, context, self_cond)[0]

    def logits_and_memory(
        self, x_t: Tensor, t: Tensor, s: Tensor, context: TokenContext | None = None, self_cond: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """And (B, N, memory), what is left to the jump after this one."""
        logits, memory = self.answer(x_t, t, s, context, self_cond).tensor_split([self.codebook.size], -1)
        if self.prior:
            own = self.path.prior_logits(self.codebook, x_t, t.clamp_min(self.t_min))
            logits = logits + (own if self.prior_share is None else self.prior_share * own)
        return logits if context is None else context.settle(logits), memory

    def answer(
        self, x_t: Tensor, t: Tensor, s: Tensor, context: TokenContext | None, self_cond: Tensor | None
    ) -> Tensor:
        """What the network says of the map's own states, in fp32 or better."""
        length = x_t.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=x_t.device).tril() if self.causal else None
        told = None if self_cond is None else self._told(self_cond).to(x_t)
        seen = Layout(self._scaled(x_t, t), t, s, told, mask=mask)
        if context is not None:
            seen = context.lay_out(seen, self.clean_states)
        return in_full(
            self.network(
                seen.x, seen.t, seen.s, mask=seen.mask, cache=seen.cache, self_cond=seen.self_cond, clean=seen.clean,
                places=seen.places,
            )
        )[:, -length:]  # fmt: skip

    def _told(self, self_cond: Tensor) -> Tensor:
        """Codes as the network reads them, memory as it stands; none is zeros."""
        codes, memory = self_cond.tensor_split([self.codebook.state_size], -1)
        missing = self.memory - memory.shape[-1]
        return torch.cat([codes / self.data_scale, nn.functional.pad(memory, (0, missing))], -1)

    def clean_states(self, tokens: Tensor, at: Tensor | None = None) -> Tensor:
        """As the network reads them; what is scored moves codes, not what is read."""
        return self.codebook.encode(tokens).detach() / self.data_scale
