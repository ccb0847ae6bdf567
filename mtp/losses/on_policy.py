"""Objectives on blocks that the head draws itself, their gradients taken through the draws.

x_2..x_K ~ q given the anchor and x_1; p is the trunk's law after the same tokens, held fixed; all sums run over k = 2..K
and end with a drawn end token. With r_k = min(1, p_k/q_k) at the drawn tokens, R_i = Π_{k≤i} r_k and
α_i = Σ_v min(p_i(v), q_i(v)):

    accepted  −Σ_i E R_i, the tokens of a draft that the token rule lets stand
    overlap   the same by E[R_i | x_<i] = R_{i−1} α_i: the last token of every prefix is summed out
    score     Σ_k E[log q_k − log p_k], the negative sequence score and entropy: KL(q‖p) of the block
    kl        the same by KL(q_k‖p_k), every position's own token summed out
    energy    E κ(x, x′) − 2 E κ(x, y), κ = −‖·‖: the energy score of blocks as points against the text's block y,
              and in the mean over y the energy distance to its law, but for a constant (Gneiting and Raftery 2007)

Score-function gradients (reinforce, rloo) need log q alone. Σ_{x_≤i} Π_k min(p_k, q_k) moves only where q_k < p_k, so

    ∇ Σ_i E R_i = E Σ_k [q_k < p_k] (Σ_{i≥k} R_i) ∇log q_k,

both paths, through the draw and through q in the ratio, in one term. `overlap` differentiates α as it stands, and
`kl` each KL; what is left for ∇log q_k are the later terms. rloo takes from each credit the mean of the other n − 1
draws' at that position: unbiased, since no credit of theirs depends on x_k. The energy's credit is of the whole block.

Relaxed gradients (straight-through, st-gumbel, gumbel-rao, reinmax; `flowmap.estimators`) differentiate the energy at
one-hot draws, which the next position of the chain reads too (JointHead.relaxed). All are biased, since norm and chain
are neither linear nor quadratic in the draws; at two drawn blocks equal to each other the slope is taken as 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowmap.estimators import GumbelRao, ReinMax, STGumbel, StraightThrough
from flowmap.estimators.relaxed import OneHotDraw
from flowmap.kernels import Energy
from flowmap.rng import Rng
from flowmap.warp import Warp
from mtp.heads.base import BlockContext, JointHead
from mtp.heads.readout import embed
from mtp.losses.linear_nll import CHUNK_LOGITS

RELAXED: dict[str, OneHotDraw] = {
    draw.name: draw for draw in (StraightThrough(), STGumbel(), GumbelRao(num_gumbels=4), ReinMax())
}
"""Gumbel-Rao with few Gumbels: each takes V random numbers a position, and the drawn blocks average already."""
TRUNK_KINDS = ("accepted", "overlap", "score", "kl")
"""What asks the trunk about the drawn tokens."""
KINDS = (
    *(f"{estimator}-{what}" for estimator in ("reinforce", "rloo") for what in TRUNK_KINDS),
    "rloo-energy",
    *(f"{name}-energy" for name in RELAXED),
)

Reader = Callable[[Tensor], Tensor]
"""(N, n, M) tokens x_1..x_M of drawn blocks → the trunk's states there, (N, n, M, d)."""


@dataclass(frozen=True)
class Policy:
    """loss: (N,), to differentiate, not to be read. value: (N,), detached, the objective's unbiased estimate."""

    loss: Tensor
    value: Tensor


def asks_trunk(kind: str) -> bool:
    return kind.partition("-")[2] in TRUNK_KINDS


def check(kind: str, num: int) -> None:
    if kind not in KINDS:
        raise ValueError(f"on-policy objective {kind!r}: known are {', '.join(KINDS)}")
    if num < 2 and not kind.startswith("reinforce"):
        raise ValueError(f"on-policy objective {kind!r} compares draws: samples {num} must be 2 or more")


def trunk_policy(
    head: JointHead, ctx: BlockContext, kind: str, num: int, read: Reader, rng: Rng,
    ends: Sequence[int] = (), size: int | None = None, first: Tensor | None = None,
) -> Policy:  # fmt: skip
    """A kind that asks the trunk, from n = num draws an anchor. ctx: N anchors, rng theirs. ends: end tokens. size: K.
    first: (N,), x_1 where it is known; else it is drawn."""
    check(kind, num)
    estimator, _, what = kind.partition("-")
    with torch.no_grad():
        held = None if first is None else first.repeat_interleave(num)
        with torch.autocast(ctx.hidden.device.type, enabled=False):  # from the law whose gradient is taken
            drawn = head.sample(_repeat(ctx, num), Warp(), _rows(rng, num), block_size=size, first=held)
        tokens = drawn.tokens.view(-1, num, drawn.tokens.shape[1])
        states = read(tokens[..., :-1])
        ended = torch.isin(tokens[..., :-1], torch.tensor(ends, device=tokens.device, dtype=tokens.dtype))
        alive = (~ended).long().cumprod(-1).float()

    def piece(hidden: Tensor, tokens: Tensor, states: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            log_q = head.law(_repeat(replace(ctx, hidden=hidden), num), tokens.flatten(0, 1)).view(*alive.shape, -1)
            log_p = nn.functional.linear(states.to(ctx.unembedding.dtype), ctx.unembedding, ctx.bias).detach()
        policy = TERMS[what](log_p.to(log_q.dtype).log_softmax(-1), log_q, tokens[..., 1:], alive)
        credit = leave_one_out(policy.credit) if estimator == "rloo" else policy.credit
        log_q = _chosen(log_q, tokens[..., 1:])
        return (policy.direct + (credit.detach() * alive * log_q).sum(-1)).mean(1), policy.value.mean(1)

    rows = max(1, CHUNK_LOGITS // (len(ctx.unembedding) * num * alive.shape[-1]))
    parts: Any = zip(*(x.split(rows) for x in (ctx.hidden, tokens, states, alive)), strict=True)
    loss, value = zip(*[checkpoint(piece, *part, use_reentrant=False) for part in parts], strict=True)
    return Policy(torch.cat(loss), torch.cat(value).detach())


@dataclass(frozen=True)
class Terms:
    """direct: (N, n), differentiable as it stands; credit: (N, n, M), of ∇log q_k; value: (N, n)."""

    direct: Tensor
    credit: Tensor
    value: Tensor


def accepted(log_p: Tensor, log_q: Tensor, tokens: Tensor, alive: Tensor) -> Terms:
    """log_p, log_q: (N, n, M, V) of positions 2..K; tokens, alive: (N, n, M), alive 0 past an end token."""
    p, q = _chosen(log_p, tokens), _chosen(log_q, tokens).detach()
    reach = (p - q).clamp_max(0).cumsum(-1).exp() * alive
    return Terms(reach.new_zeros(()), (q < p) * -_suffix(reach), -reach.sum(-1))


def overlap(log_p: Tensor, log_q: Tensor, tokens: Tensor, alive: Tensor) -> Terms:
    p, q = _chosen(log_p, tokens), _chosen(log_q, tokens).detach()
    alpha = torch.minimum(log_p, log_q).exp().sum(-1)
    reached = _before((p - q).clamp_max(0)).exp() * alive
    stands = reached * alpha.detach()
    return Terms(-(reached * alpha).sum(-1), (q < p) * (stands - _suffix(stands)), -stands.sum(-1))


def score(log_p: Tensor, log_q: Tensor, tokens: Tensor, alive: Tensor) -> Terms:
    excess = (_chosen(log_q, tokens).detach() - _chosen(log_p, tokens)) * alive
    return Terms(excess.new_zeros(()), _suffix(excess), excess.sum(-1))


def kl(log_p: Tensor, log_q: Tensor, tokens: Tensor, alive: Tensor) -> Terms:
    each = (log_q.exp() * (log_q - log_p)).sum(-1) * alive
    held = each.detach()
    return Terms(each.sum(-1), _suffix(held) - held, held.sum(-1))


TERMS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Terms]] = {
    "accepted": accepted, "overlap": overlap, "score": score, "kl": kl,
}  # fmt: skip


def energy_policy(
    head: JointHead, ctx: BlockContext, kind: str, num: int, targets: Tensor, mask: Tensor, rng: Rng
) -> Policy:
    """targets, mask: (N, K), the text's blocks y, whose first tokens are given to the head; what is masked is no part of
    the distance. The points are the tokens' embeddings at unit length, one after another."""
    check(kind, num)
    estimator, size = kind.removesuffix("-energy"), targets.shape[1]
    codes = nn.functional.normalize(ctx.embedding.detach().float(), dim=-1)
    inside = mask[:, 1:].float()
    first = targets[:, 0].repeat_interleave(num)

    def points(x: Tensor) -> Tensor:
        """(N, n, M) tokens, or soft ones, → (N, n, M·e)."""
        return (embed(x, codes) * inside[:, None, :, None]).flatten(2)

    rows = _repeat(ctx, num)
    with torch.autocast(ctx.hidden.device.type, enabled=False):
        y = points(targets[:, None, 1:])
        if estimator == "rloo":
            with torch.no_grad():
                tokens = head.sample(rows, Warp(), _rows(rng, num), block_size=size, first=first).tokens
            own, cross = _similar(points(tokens[:, 1:].view(-1, num, size - 1)), y)
            log_q = (head.log_prob(rows, tokens)[:, 1:].view(-1, num, size - 1) * inside[:, None]).sum(-1)
            loss = (energy_credit(own, cross) * log_q).mean(1)
            return Policy(loss, energy_score(own, cross))
        draw, drawn_by = RELAXED[estimator], _rows(rng, num)

        def choose(k: int, log_q: Tensor) -> Tensor:
            return draw.draw(log_q[:, None], 1, drawn_by, f"/{k}")[0, :, 0]

        soft = head.relaxed(rows, choose, first, size)[:, 1:]
        loss = energy_score(*_similar(points(soft.view(-1, num, *soft.shape[1:])), y))
        return Policy(loss, loss.detach())


def energy_score(own: Tensor, cross: Tensor) -> Tensor:
    """own: (N, n, n), κ of all pairs of draws; cross: (N, n), κ of each with y → (N,), no draw paired with itself."""
    n = own.shape[-1]
    return (own.sum((-2, -1)) - own.diagonal(dim1=-2, dim2=-1).sum(-1)) / (n * (n - 1)) - 2 * cross.mean(-1)


def energy_credit(own: Tensor, cross: Tensor) -> Tensor:
    """(N, n), of ∇log q of each whole block: 2 E κ(x_i, x′) − 2 κ(x_i, y) less the mean of the same over the other
    draws, among themselves: what x_i has no part in."""
    n = own.shape[-1]
    pairs = own.sum(-1) - own.diagonal(dim1=-2, dim2=-1)
    others = pairs.sum(-1, keepdim=True) - 2 * pairs
    baseline = 2 * others / max((n - 1) * (n - 2), 1) - 2 * (cross.sum(-1, keepdim=True) - cross) / (n - 1)
    return 2 * pairs / (n - 1) - 2 * cross - baseline


def leave_one_out(credit: Tensor) -> Tensor:
    """(N, n, ...): each less the mean of the n − 1 others."""
    n = credit.shape[1]
    return (credit - credit.mean(1, keepdim=True)) * (n / (n - 1))


def _similar(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    kernel, scale = Energy(), x.new_ones(len(x))
    return kernel(x, x, scale), kernel(x, y, scale)[..., 0]


def _chosen(log_prob: Tensor, tokens: Tensor) -> Tensor:
    return log_prob.gather(-1, tokens[..., None])[..., 0]


def _suffix(x: Tensor) -> Tensor:
    """Σ_{i≥k} x_i, along the last axis."""
    return x.flip(-1).cumsum(-1).flip(-1)


def _before(x: Tensor) -> Tensor:
    """Σ_{i<k} x_i, along the last axis."""
    return nn.functional.pad(x.cumsum(-1)[..., :-1], (1, 0))


def _repeat(ctx: BlockContext, num: int) -> BlockContext:
    return replace(ctx, hidden=ctx.hidden.repeat_interleave(num, 0))


def _rows(rng: Rng, num: int) -> Rng:
    """Draw j of the anchor at address a is sample a·num + j."""
    assert rng.samples is not None
    rows = rng.samples[:, None] * num + torch.arange(num, device=rng.samples.device)
    return Rng(rng.seed, rows.flatten(), rng.batch)
