"""Which drafted tokens stand, so that what is committed follows the target's law exactly.

Shapes: N rows, n drafted tokens x_1..x_n, V words. log_p (N, n+1, V): the target's law after each prefix of the draft,
log_q (N, n, V): the law each token was drafted from, both after temperature and top-p. uniform (N, n): independent for
every token *and* every row; one shared over a row's tokens is wrong. Everything is vectorised over rows and positions.

submitted (N, n): False from where a row's draft ends of its own will; nothing there is kept. log_q must then be the law
of what *would* be submitted, of mass below one, a token that would not be having q = 0: all of them (q = 0 throughout)
where the end was decided before x_k was drawn, and those dropped for their value where it was decided after. With that
q the rules stand as they are: Σ_v q min(1, p/q) falls short of 1 by the mass of (p − q)₊, whatever q's own mass, and so
for P_i p in the block rule, by induction from the last token submitted. To draw from p after a token was dropped *for
its value* is biased: a token v that is submitted, and drafted too often, has p(v) + q(dropped) p(v), not p(v).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Verdict:
    """kept: (N,) drafted tokens that stand, 0 to n. law: (N, V), in proportion to the law of the token after them."""

    kept: Tensor
    law: Tensor


class Rule(Protocol):
    def __call__(
        self, log_p: Tensor, log_q: Tensor, tokens: Tensor, uniform: Tensor, submitted: Tensor | None = None
    ) -> Verdict: ...


def token_rule(
    log_p: Tensor, log_q: Tensor, tokens: Tensor, uniform: Tensor, submitted: Tensor | None = None
) -> Verdict:
    """Keep x_i with probability min(1, p/q), up to the first that falls; then (p − q)₊ (2211.17192, 2302.01318)."""
    accepted = uniform < _log_ratio(log_p, log_q, tokens, submitted).exp()
    kept = _prefix(accepted if submitted is None else accepted & submitted)
    return Verdict(kept, _residual(log_p, log_q, kept, torch.ones_like(uniform[:, 0])))


def block_rule(
    log_p: Tensor, log_q: Tensor, tokens: Tensor, uniform: Tensor, submitted: Tensor | None = None
) -> Verdict:
    """Judge every prefix as a whole and keep the longest that stands (2403.10444): never shorter in mean.

        P_i = min(1, P_{i−1} p(x_i|x_<i) / q(x_i|x_<i)),  Z_i = Σ_v (P_i p(v|x_≤i) − q(v|x_≤i))₊,
        h_i = Z_i / (Z_i + 1 − P_i),  h_n = P_n;  then (P_i p − q)₊, or p where all n stand.

    log P is a walk held below 0, so it is its running sum less its running maximum.
    """
    walk = _log_ratio(log_p, log_q, tokens, submitted).cumsum(1)
    walk = torch.nn.functional.pad(walk, (1, 0))
    share = (walk - walk.cummax(1).values).exp()[:, 1:]  # P_1..P_n
    excess = (share[:, :-1, None] * log_p[:, 1:-1].exp() - log_q[:, 1:].exp()).clamp_min(0).sum(-1)
    whole = (excess == 0) & (share[:, :-1] == 1)  # 0/0: p = q
    stands = torch.where(whole, 1.0, excess / (excess + 1 - share[:, :-1]).clamp_min(torch.finfo(excess.dtype).tiny))
    accepted = uniform < torch.cat([stands, share[:, -1:]], 1)
    if submitted is not None:
        accepted = accepted & submitted
    place = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    kept = (accepted * place).amax(1)
    reached = torch.nn.functional.pad(share, (1, 0), value=1.0).gather(1, kept[:, None])[:, 0]
    return Verdict(kept, _residual(log_p, log_q, kept, reached))


RULES: dict[str, Rule] = {"token": token_rule, "block": block_rule}


def agreement(picks: Tensor, tokens: Tensor) -> Tensor:
    """Shared noise: drafted tokens are kept while the target picks the same under the same noise. picks: (N, n+1), of
    the target after each prefix; the pick after the last one kept is committed. → kept (N,)."""
    return _prefix(picks[:, :-1] == tokens)


def _prefix(accepted: Tensor) -> Tensor:
    return accepted.long().cumprod(1).sum(1)


def _log_ratio(log_p: Tensor, log_q: Tensor, tokens: Tensor, submitted: Tensor | None) -> Tensor:
    """log p/q of the tokens, (N, n); 0 where they were not submitted, and q may be 0."""
    ratio = _chosen(log_p[:, :-1], tokens) - _chosen(log_q, tokens)
    return ratio if submitted is None else torch.where(submitted, ratio, 0.0)


def _chosen(log_prob: Tensor, tokens: Tensor) -> Tensor:
    return log_prob.gather(-1, tokens[..., None])[..., 0]


def _residual(log_p: Tensor, log_q: Tensor, kept: Tensor, share: Tensor) -> Tensor:
    """(share · p − q)₊ after the tokens kept; p where all are, and where rounding leaves nothing of it."""
    rows, last = torch.arange(len(kept), device=kept.device), log_q.shape[1]
    p = log_p[rows, kept].exp()
    rest = (share[:, None] * p - log_q[rows, kept.clamp_max(last - 1)].exp()).clamp_min(0)
    return torch.where(((kept == last) | (rest.sum(-1) <= 0))[:, None], p, rest)
