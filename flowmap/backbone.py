"""One s-conditioned transformer over a set of state vectors: patches of an image, codes of tokens, a head's block.

Every state vector attends to all (or as a mask says); what there is besides comes as `Context`. The times (t, s),
one pair a sample or one a position, enter through two small embedders into adaLN-zero (2212.09748), so that a fresh
network outputs 0. Shapes: B batch, N states, P prefix, W width.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowmap.attention import Attention, resolve
from flowmap.positions import LearnedPositions, Rotary

VERSION = 2
"""Of what a network of given weights computes and what a step of it costs: raised when either changes, so that what was measured
before does not stand beside what is measured after. 2: GELU as torch's plain one, one state without queries and keys."""
PREFIX = "num_prefix"
"""What a cache is told of itself: how many of its states are a prefix."""
PLACES = 0.5
"""Deviation of fresh learned positions beside rotary ones, the one size that was tried; learned ones alone keep 0.02."""
Positions = Literal["learned", "rope", "rope+learned", "learned-2d", "rope-2d", "none"]


@dataclass(frozen=True)
class BackboneConfig:
    """state_size: of one state vector; output_size: default the same. max_positions: states at most, of the learned
    kinds; grid: (rows, columns) of the 2-D kinds; rope+learned: both in one dimension, where what a state means hangs on its place in the whole. time_scale: 1000 tells close times apart, 1 is smooth in t, which
    objectives that differentiate in time need. embed: what the second embedder is given. use_s: False zeroes it (the
    s-ablation). read_bias: deviation of the first layer's fresh biases: where they are 0, the norm of a state is lost to the
    norms that follow until they are learned. self_size: numbers of what self_cond tells of a state; default state_size. num_classes, vector_size, prefix_size: 0 for none; class num_classes is the label of "no label"."""

    state_size: int
    width: int = 128
    depth: int = 4
    heads: int = 4
    mlp_ratio: float = 4.0
    output_size: int | None = None
    positions: Positions = "learned"
    max_positions: int = 64
    grid: tuple[int, int] = (1, 1)
    qk_norm: bool = True
    time_scale: float = 1000.0
    embed: Literal["s", "t-s"] = "s"
    use_s: bool = True
    read_bias: float = 0.0
    self_conditioning: bool = False
    self_size: int | None = None
    num_classes: int = 0
    vector_size: int = 0
    prefix_size: int = 0
    attention: str = "sdpa"


@dataclass(frozen=True)
class Context:
    """What a network may look at besides x_t. label: (B,) classes. vector: (B, vector_size) or one for every state,
    (B, N, vector_size). prefix: (B, P, prefix_size), clean vectors that stand before the states."""

    label: Tensor | None = None
    vector: Tensor | None = None
    prefix: Tensor | None = None

    def to(self, device: torch.device) -> "Context":
        parts = (self.label, self.vector, self.prefix)
        return Context(*(None if part is None else part.to(device) for part in parts))

    def __getitem__(self, rows: Any) -> "Context":
        parts = (self.label, self.vector, self.prefix)
        return Context(*(None if part is None else part[rows] for part in parts))


class Backbone(nn.Module):
    """attention: the function itself, where the backend named in the config will not do."""

    def __init__(self, config: BackboneConfig, attention: Attention | None = None) -> None:
        super().__init__()
        c = self.config = config
        if c.width % c.heads or (c.width // c.heads) % (4 if c.positions == "rope-2d" else 2):
            raise ValueError(f"width {c.width} must divide into {c.heads} heads of an even size (of fours for rope-2d)")
        self.read = nn.Linear(c.state_size, c.width)
        self.read_self = nn.Linear(c.self_size or c.state_size, c.width, bias=False) if c.self_conditioning else None
        self.read_prefix = nn.Linear(c.prefix_size, c.width) if c.prefix_size else None
        self.label = nn.Embedding(c.num_classes + 1, c.width) if c.num_classes else None
        self.vector = nn.Linear(c.vector_size, c.width) if c.vector_size else None
        self.time, self.target = TimeEmbedding(c.width, c.time_scale), TimeEmbedding(c.width, c.time_scale)
        grid = c.grid if c.positions.endswith("-2d") else None
        self.learned = LearnedPositions(grid or (c.max_positions,), c.width) if "learned" in c.positions else None
        self.turn = Rotary(c.width // c.heads, grid) if c.positions.startswith("rope") else None
        attend = attention or resolve(c.attention)
        self.blocks = nn.ModuleList(Block(c, layer, attend) for layer in range(c.depth))
        self.norm = nn.LayerNorm(c.width, elementwise_affine=False)
        self.modulate = nn.Linear(c.width, 2 * c.width)
        self.write = nn.Linear(c.width, c.output_size or c.state_size)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        for zero in (self.write, self.modulate, *(block.modulate for block in self.blocks)):
            nn.init.zeros_(zero.weight)  # type: ignore[union-attr,arg-type]
        nn.init.xavier_uniform_(self.read.weight)
        if c.positions == "rope+learned":
            nn.init.normal_(self.learned.tables[0].weight, std=PLACES)  # type: ignore[union-attr,arg-type]
        if c.read_bias:
            nn.init.normal_(self.read.bias, std=c.read_bias)

    def forward(self, *args: Any, **told: Any) -> Tensor:
        """All as `features`. → (B, N, output_size)."""
        return self.write(self.features(*args, **told))

    def features(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        context: Context | None = None,
        *,
        mask: Tensor | None = None,
        cache: Any = None,
        self_cond: Tensor | None = None,
        clean: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """x: (B, N, state_size); t, s: (B,) or (B, N). mask: bool, True = look, broadcastable to
        (B, heads, P+N, cached+P+N). cache: transformers' DynamicCache, or whatever has its `update` and
        `get_seq_length`; its states stand before these. self_cond: (B, N, self_size), an estimate of x_0, like x, and what stands beside it. clean: (B, N) bool, states
        at time 0 whatever t says, as a prefix's are. places: (N,) int64, where the states stand, from 0; default one
        after the other behind the cache. → what its last layer reads, (B, N, width)."""
        context = context or Context()
        h = self.read(x)
        if self_cond is not None:
            h = h + _built(self.read_self, "self_conditioning")(self_cond)
        elif self.read_self is not None and self.training and torch.is_grad_enabled():
            h = h + 0 * self.read_self.weight.sum()  # processes wait for a gradient of every weight
        past = cache.get_seq_length() if cache is not None else 0
        prefixed = getattr(cache, PREFIX, 0)
        if places is None:
            first = past - prefixed  # a prefix has no place among the states
            end = first + x.shape[1]
            if self.learned is not None and end > self.learned.held:
                raise ValueError(f"{end} states, but positions for {self.learned.held}")
            places = torch.arange(first, end, device=x.device)
        if self.learned is not None:
            h = h + self.learned(places)
        num_prefix = 0
        if context.prefix is not None:
            num_prefix = context.prefix.shape[1]
            h = torch.cat([_built(self.read_prefix, "prefix_size")(context.prefix), h], 1)
            if cache is not None:
                setattr(cache, PREFIX, num_prefix)
        condition = Condition(self._told(t, s, context))
        if num_prefix or clean is not None:
            none = t.new_zeros(len(x))
            at = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device) if clean is None else clean
            at = nn.functional.pad(at, (num_prefix, 0), value=True)
            condition = condition.but(self._told(none, none, Context(label=context.label)), at)
        turn = self.turn(past, num_prefix, prefixed, places) if self.turn is not None else None
        for block in self.blocks:
            h = block(h, condition, mask, cache, turn)
        shift, scale = condition.through(self.modulate).chunk(2, -1)
        return (self.norm(h) * (1 + scale) + shift)[:, num_prefix:]

    def _told(self, t: Tensor, s: Tensor, context: Context) -> Tensor:
        """Times and what the context says to all states alike, (B, 1, width), or to each, (B, N, width)."""
        found = self.time(t)
        if self.config.use_s:
            found = found + self.target(s if self.config.embed == "s" else t - s)
        if found.ndim == 2:
            found = found[:, None]
        if context.label is not None:
            found = found + _built(self.label, "num_classes")(context.label)[:, None]
        if context.vector is not None:
            told = _built(self.vector, "vector_size")(context.vector)
            found = found + (told if told.ndim == 3 else told[:, None])
        return nn.functional.silu(found)


@dataclass(frozen=True)
class Condition:
    """What shifts, scales and gates the states. rows: (B, 1 or P+N, W), of all states alike or of each; or (B, 2, W), of which
    pick, (B, P+N, 2), says with a one whose each state is: two rows a sample go through every layer, however many states."""

    rows: Tensor
    pick: Tensor | None = None

    def but(self, clean: Tensor, at: Tensor) -> "Condition":
        """clean: (B, 1, W), of the states where at, (B, P+N) bool, is True."""
        if self.rows.shape[1] == 1:
            return Condition(torch.cat([self.rows, clean], 1), nn.functional.one_hot(at.long(), 2))
        own = nn.functional.pad(self.rows, (0, 0, at.shape[1] - self.rows.shape[1], 0))
        return Condition(torch.where(at[..., None], clean, own))

    def through(self, layer: nn.Module) -> Tensor:
        out = layer(self.rows)
        return out if self.pick is None else self.pick.to(out.dtype) @ out


class Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition; the gates start at zero."""

    def __init__(self, c: BackboneConfig, layer: int, attend: Attention) -> None:
        super().__init__()
        self.layer, self.heads, self.attend = layer, c.heads, attend
        self.norm = nn.LayerNorm(c.width, elementwise_affine=False)
        self.modulate = nn.Linear(c.width, 6 * c.width)
        self.qkv, self.join = nn.Linear(c.width, 3 * c.width), nn.Linear(c.width, c.width)
        size = c.width // c.heads
        self.norm_q, self.norm_k = (nn.LayerNorm(size, bias=False) if c.qk_norm else nn.Identity() for _ in "qk")
        hidden = int(c.mlp_ratio * c.width)
        self.up, self.down = nn.Linear(c.width, hidden), nn.Linear(hidden, c.width)

    def forward(self, h: Tensor, condition: Condition, mask: Tensor | None, cache: Any, turn: Any) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = condition.through(self.modulate).chunk(6, -1)
        x = torch.addcmul(shift_a, self.norm(h), 1 + scale_a)
        alone = h.shape[1] == 1 and mask is None and cache is None
        looked = self._alone(x) if alone else self._attended(x, mask, cache, turn)
        h = torch.addcmul(h, gate_a, self.join(looked))
        x = torch.addcmul(shift_m, self.norm(h), 1 + scale_m)
        return torch.addcmul(h, gate_m, self.down(nn.functional.gelu(self.up(x))))

    def _attended(self, x: Tensor, mask: Tensor | None, cache: Any, turn: Any) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k, v = self.norm_q(q).transpose(1, 2), self.norm_k(k).transpose(1, 2), v.transpose(1, 2)
        if turn is not None:
            q, k = turn(q), turn(k)
        q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast norms return fp32
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        return self.attend(q, k, v, mask).transpose(1, 2).flatten(2)

    def _alone(self, x: Tensor) -> Tensor:
        """One state looks at itself, with weight 1: its value. What would make queries and keys has a gradient of 0, as it would
        have, and not none, for which DDP would wait."""
        width = x.shape[-1]
        value = nn.functional.linear(x, self.qkv.weight[2 * width :], self.qkv.bias[2 * width :])
        idle = [p.sum() for norm in (self.norm_q, self.norm_k) for p in norm.parameters()]
        return value + 0 * sum(idle)


class TimeEmbedding(nn.Module):
    """cos, sin of scale·t at 64 frequencies from 1 down to 1e-4, then two layers. t: any shape → (*t, W)."""

    def __init__(self, width: int, scale: float, features: int = 128) -> None:
        super().__init__()
        exponents = torch.arange(features // 2) / (features // 2)
        # saved, since from_pretrained builds a model without values and fills in what was saved
        self.register_buffer("frequencies", scale * 10_000.0**-exponents)
        self.first, self.second = nn.Linear(features, width), nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        angle = t[..., None] * self.frequencies.to(t.dtype)  # type: ignore[operator]
        features = torch.cat([angle.cos(), angle.sin()], -1).to(self.first.weight.dtype)
        return self.second(nn.functional.silu(self.first(features)))


def _built(part: nn.Module | None, option: str) -> nn.Module:
    if part is None:
        raise ValueError(f"this network was built without {option}")
    return part
