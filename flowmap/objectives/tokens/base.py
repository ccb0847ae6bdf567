"""What the objectives on logits share: part of the batch on the diagonal s = t, where the loss is cross-entropy, the
rest drawn to a distribution q that equals the map's own at the exact two-time map.

    L = Σ_l −log p(x^l | x_t, t, t)   on the diagonal,        w·Σ_l KL(sg q^l ‖ p^l_{t→s}(x_t))   off it

p = softmax of the logits, g = Cᵀp; what §2 of math.md says of g holds of p, an average of p_{u→u} along the trajectory.
w: 1, or sg(‖q − p‖² + c)^{−power} (2604.09784). Sums over the N tokens of a sample; the count is tokens, so that losses
read in nats a token. Learned codes are moved by the diagonal alone. With a frozen teacher p* the diagonal is learned from
its posterior instead of the text's tokens, KL(p*_{t→t} ‖ p_{t→t}), which has the same minimum and less noise (2602.16813).
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flowmap.codebook import in_full
from flowmap.objectives.base import Loss, Objective, require_linear
from flowmap.path import Path, expand
from flowmap.rng import Rng
from flowmap.self_conditioning import asked, drawn, placed
from flowmap.times import TimeLaw, Uniform, ordered_pair


@dataclass(frozen=True)
class TokenStates:
    """A slice of token sequences; their states are the model's codes. tokens: (batch, N) int64; context: what the map's
    network takes, indexable by rows. scored: (batch, N) bool, the tokens that a loss is a mean over, where a map knows
    the others by its context and gives them no loss; None: all. levels: (batch, N) int64 below N, tokens of a sample
    with the same number are noised to the same time, drawn for that number; None: one time a sample."""

    tokens: Tensor
    context: Any = None
    scored: Tensor | None = None
    levels: Tensor | None = None

    @property
    def size(self) -> int:
        return len(self.tokens)

    @property
    def count(self) -> Tensor:
        """Scored tokens, as a number to divide by."""
        return self.counts.sum()

    @property
    def counts(self) -> Tensor:
        """Scored tokens of each sample, (batch,)."""
        if self.scored is None:
            return torch.full((self.size,), float(self.tokens.shape[1]), device=self.tokens.device)
        return self.scored.sum(1).float()

    def __getitem__(self, rows: Tensor) -> "TokenStates":
        more = (None if part is None else part[rows] for part in (self.context, self.scored, self.levels))
        return TokenStates(self.tokens[rows], *more)

    def to(self, device: torch.device) -> "TokenStates":
        more = (None if part is None else part.to(device) for part in (self.context, self.scored, self.levels))
        return TokenStates(self.tokens.to(device), *more)

    def draws(self, rng: Rng) -> tuple[Rng, int]:
        """How many times are drawn, and with what randomness: one a sample, or one for every level there could be."""
        if self.levels is None:
            return rng, self.size
        return rng.parts(self.tokens.shape[1]), self.tokens.numel()

    def at_tokens(self, drawn: Tensor) -> Tensor:
        """What was drawn so, as (batch,) of the samples or (batch, N) of their tokens."""
        return drawn if self.levels is None else drawn.view(self.levels.shape).gather(1, self.levels.to(drawn.device))


@dataclass(frozen=True)
class NoisedTokens:
    """Rows of a batch on their way: x_t = α_t c_x + σ_t ε, (rows, N, d). t, s: (rows,), or (rows, N) of each token. u: one
    more U[0, 1) a row, for what a method draws besides, in the form of t. told: rows whose maps are asked by two passes;
    None: none is. carried: (rows, N, d), the codes that the jump before expected, zeros where there is none; None: no jump hears
    of another."""

    tokens: Tensor
    x_t: Tensor
    t: Tensor
    s: Tensor
    context: Any
    u: Tensor
    told: Tensor | None = None
    carried: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> "NoisedTokens":
        context, told, carried = (
            None if part is None else part[rows] for part in (self.context, self.told, self.carried)
        )
        return NoisedTokens(
            self.tokens[rows], self.x_t[rows], self.t[rows], self.s[rows], context, self.u[rows], told, carried
        )


class TokenObjective(Objective):
    """diagonal: share of the samples with s = t. times: law of t and s. power, floor: of the weight w. t_min: no
    network is asked about a state nearer to the data than this; v and the prior logits have a pole at 0.
    teacher_decay: of the averaged network that gives q; None: the model itself does. self_conditioning: share of the samples
    whose maps are asked by two passes; fixed_point: weight of KL(sg p(· | ĉ) ‖ p(·)) on these, which teaches the first pass
    what the second finds. frozen: (map,), where a teacher was trained before."""

    carries = False
    """whether a jump hears what the one before it expected"""
    frozen: tuple[Any, ...] = ()  # in a tuple, so that it is no submodule: neither trained nor saved
    denoiser_steps = 0
    """the first of a training, in which all samples are on the diagonal"""

    def __init__(
        self,
        diagonal: float = 0.5,
        times: TimeLaw | None = None,
        power: float = 0.0,
        floor: float = 1e-6,
        t_min: float = 1e-3,
        teacher_decay: float | None = None,
        self_conditioning: float = 0.0,
        fixed_point: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= self_conditioning <= 1 or (fixed_point and not self_conditioning):
            raise ValueError(
                f"self_conditioning {self_conditioning} with fixed_point {fixed_point}: a share of the samples, above 0 for the latter"
            )
        if not 0 < t_min < 1:
            raise ValueError(f"t_min {t_min} must lie between 0 and 1: v and the prior logits have a pole at 0")
        self.diagonal, self.times, self.power, self.floor = diagonal, times or Uniform(), power, floor
        self.t_min, self.teacher_decay = t_min, teacher_decay
        self.self_conditioning, self.fixed_point = self_conditioning, fixed_point

    def check_path(self, path: Path) -> None:
        if self.diagonal < 1:
            require_linear(self, path)

    def pair(self, rng: Rng, count: int, step: int) -> tuple[Tensor, Tensor]:
        """(t, s) off the diagonal."""
        return ordered_pair(self.times, rng, count)

    def taught(self, teacher: Any, x: NoisedTokens, step: int) -> tuple[NoisedTokens, Tensor]:
        """The jumps that are drawn to q, and q; called without gradients."""
        return x, self.target(teacher, x, step)

    def target(self, teacher: Any, x: NoisedTokens, step: int) -> Tensor:
        """q, (rows, N, V); called without gradients. teacher: the averaged network, or the model itself."""
        raise NotImplementedError

    def forward(self, model, batch: TokenStates, *, teacher=None, rng: Rng, step: int) -> Loss:
        self.check_path(model.path)
        x, on_diagonal = self.noised(model, batch, rng, step)
        total = few_step = torch.zeros((), device=x.t.device)
        metrics = dict.fromkeys(("cross_entropy", "few_step_kl"), (total, total))  # ranks must name the same
        local, few = (torch.nonzero(mask)[:, 0] for mask in (on_diagonal, ~on_diagonal))
        metric = total.new_zeros(0)
        if len(local):
            part = x[local]
            logits, gap = self._local_logits(model, part)
            error, metric = self.local_error(model, part, logits)
            total = total + error.sum() + self.fixed_point * gap
            metrics["cross_entropy"] = (metric.sum().detach(), batch[local].count)
        alike = x.t.ndim == 1  # tokens with times of their own tell no clock of a sample's
        statistics = self.times.statistics(x.t[local], metric, batch[local].counts) if alike else {}
        if len(few):
            part = x[few]
            error, weight = self.divergence(model, asked(teacher or model, part.told), part, step)
            few_step = (weight * error).sum()
            metrics["few_step_kl"] = (error.sum().detach(), batch[few].count * (len(error) // len(few)))
        return Loss(total + few_step, batch.count, metrics, statistics, few_step)

    def local_error(self, model: Any, x: NoisedTokens, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(what is minimised on the diagonal, the cross-entropy to be told of), (rows,) each. logits: of p_{t→t}(x_t)."""
        told = cross_entropy(logits, x.tokens)
        if not self.frozen:
            return told, told
        with torch.no_grad():
            q = in_full(self.frozen[0].logits(x.x_t, x.t, x.t, x.context)).softmax(-1)
        return kl(q, logits), told

    def local(self, teacher: Any) -> Any:
        """The map that says what p_{u→u} is in a target."""
        return self.frozen[0] if self.frozen else teacher

    def _local_logits(self, model: Any, x: NoisedTokens) -> tuple[Tensor, Tensor | float]:
        """Of p_{t→t}(x_t), and what the fixed point costs: each pass is made once."""
        if not self.fixed_point or x.told is None:
            return asked(model, x.told).logits(x.x_t, x.t, x.t, x.context), 0.0
        rows = torch.nonzero(x.told)[:, 0]
        part = x[rows]
        first = model.logits(part.x_t, part.t, part.t, part.context)
        guess = model.path.expected(model.codebook, first.detach(), part.x_t)
        logits = model.logits(x.x_t, x.t, x.t, x.context, self_cond=placed(guess, rows, x.x_t))
        return logits, kl(in_full(logits[rows].detach()).softmax(-1), first).sum()

    def learn(self, statistics: dict[str, Tensor]) -> None:
        self.times.learn(statistics)

    def noised(self, model: Any, batch: TokenStates, rng: Rng, step: int) -> tuple[NoisedTokens, Tensor]:
        """The batch at its times, and which of its samples are on the diagonal."""
        own, count = batch.draws(rng)
        x_0 = model.codebook.encode(batch.tokens)
        on_diagonal = rng.uniform("diagonal", batch.size) < (1 if step < self.denoiser_steps else self.diagonal)
        t, s = (batch.at_tokens(time) for time in self.pair(own, count, step))
        alone = expand(on_diagonal, t)
        t = torch.where(alone, batch.at_tokens(self.times.draw(own, "t", count)), t).to(x_0).clamp_min(self.t_min)
        s = torch.where(alone.to(t.device), t, torch.minimum(s.to(t), t))
        x_t = model.path.noise(x_0, model.path.draw_noise(rng, "eps", x_0), t)
        u = expand(rng.uniform("u", batch.size).to(t), t)
        told = drawn(rng, batch.size, self.self_conditioning)
        told = None if told is None else told.to(t.device)
        return NoisedTokens(batch.tokens, x_t, t, s, batch.context, u, told), on_diagonal.to(t.device)

    def divergence(self, model: Any, teacher: Any, x: NoisedTokens, step: int) -> tuple[Tensor, Tensor]:
        """(Σ_l KL(q^l ‖ p^l), w), (rows,) each, or so many times as many as a row is made jumps of. model: by one pass; teacher: as x.told
        says."""
        x = replace(x, x_t=x.x_t.detach())
        with torch.no_grad():
            x, q = self.taught(teacher, x, step)
        with model.codebook.held():
            logits = self.said(model, x)
        return kl(q, logits), self.weight(q, logits)

    def said(self, model: Any, x: NoisedTokens) -> Tensor:
        """Logits of the taught jumps, with gradients."""
        if x.carried is None:
            return asked(model, x.told).logits(x.x_t, x.t, x.s, x.context)
        return model.logits(x.x_t, x.t, x.s, x.context, self_cond=x.carried)

    def weight(self, q: Tensor, logits: Tensor) -> Tensor:
        """w, (rows,)."""
        distance = (q - in_full(logits.detach()).softmax(-1)).square().flatten(1).sum(1)
        return (distance + self.floor) ** -self.power


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Σ_l −log p(x^l), (rows,), in nats."""
    return each_cross_entropy(logits, tokens).sum(1)


def each_cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """−log p(x^l), (rows, N), in nats."""
    return -in_full(logits).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def kl(q: Tensor, logits: Tensor) -> Tensor:
    """Σ_l KL(q^l ‖ softmax(logits)^l), (rows,)."""
    return -(q * in_full(logits).log_softmax(-1) + torch.special.entr(q)).flatten(1).sum(1)
