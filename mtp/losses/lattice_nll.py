"""Negative log-likelihood of a chain on a lattice (`heads/lattice.py`), in chunks of rows as in `linear_nll`.

With U = x Wᵀ + bias of a row, L the C largest of U, r_b = W₂[b]·a for b ∈ L, and
logit ε = logsumexp(U off L) − logsumexp(U on L) + δ:

    log q(y) = log(1 − ε) + log softmax_L(U + r)[y]   if y ∈ L,      log ε + log softmax_{V∖L}(U)[y]   if not.

At most `CHUNK_LOGITS` of U exist at once. Products may be rounded by autocast; all else is fp32.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus
from torch.utils.checkpoint import checkpoint

from mtp.losses.linear_nll import chunk_rows, given_once


class Rows(NamedTuple):
    """targets: (R,), y; base: (R, d), x; correction: (R, ρ), a; shift: (R,), δ; unembedding: (V, d), W;
    readout: (V, ρ), W₂; bias: (V,) or None; candidates: C < V."""

    targets: Tensor
    base: Tensor
    correction: Tensor
    shift: Tensor
    unembedding: Tensor
    readout: Tensor
    bias: Tensor | None
    candidates: int


@dataclass(frozen=True)
class Lattice:
    """What in q depends on no a. tokens, logits: (..., C), the largest of U; outside: (...), logsumexp of the
    others; log_stay, log_escape: (...), log(1 − ε) and log ε."""

    tokens: Tensor
    logits: Tensor
    outside: Tensor
    log_stay: Tensor
    log_escape: Tensor

    @classmethod
    def of(cls, logits: Tensor, shift: Tensor, candidates: int) -> "Lattice":
        """logits: (..., V), U; shift: (...), δ. No gradient passes the choice of L."""
        inside, tokens = logits.topk(candidates)
        outside = logits.scatter(-1, tokens, -torch.inf).logsumexp(-1)
        odds = outside - inside.logsumexp(-1) + shift.float()
        return cls(tokens, inside, outside, logsigmoid(-odds), logsigmoid(odds))

    def slot(self, k: int) -> "Lattice":
        """The k-th of the second axis."""
        return Lattice(
            self.tokens[:, k], self.logits[:, k], self.outside[:, k], self.log_stay[:, k], self.log_escape[:, k]
        )

    def off(self, logits: Tensor) -> Tensor:
        """logits: (..., V), U → log q off the lattice, −inf on it."""
        off = logits + (self.log_escape - self.outside)[..., None]
        return off.scatter_(-1, self.tokens, -torch.inf)

    def on(self, correction: Tensor, readout: Tensor) -> Tensor:
        """correction: (..., A, ρ), A values of a → log q on the lattice, (..., A, C)."""
        scores = self.logits[..., None, :] + (correction @ readout[self.tokens].mT).float()
        return self.log_stay[..., None, None] + scores.log_softmax(-1)


def row_nll(rows: Rows) -> Tensor:
    """−log q(y) of every row, (R,), nats. Differentiable: chunks are recomputed backwards."""

    def piece(targets: Tensor, base: Tensor, correction: Tensor, shift: Tensor) -> Tensor:
        logits = _logits(base, rows.unembedding, rows.bias)
        lattice = Lattice.of(logits, shift, rows.candidates)
        hit = lattice.tokens == targets[:, None]
        on = (lattice.on(correction[:, None], rows.readout)[:, 0] * hit).sum(-1)
        off = logits.gather(-1, targets[:, None])[:, 0] - lattice.outside + lattice.log_escape
        return -torch.where(hit.any(-1), on, off)

    size = chunk_rows(len(rows.unembedding))
    parts = zip(*(x.split(size) for x in (rows.targets, rows.base, rows.correction, rows.shift)), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(piece, *part, use_reentrant=False) for part in parts])
    return torch.cat([piece(*part) for part in parts])


def weighted_nll(row_weights: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """Σ w · nll, to differentiate once, and the rows' own nll (nats, fp32, detached), as `linear_nll.weighted_nll`:
    half the time of `row_nll`, forward and backward together."""
    if not torch.is_grad_enabled():
        nll = row_nll(rows)
        return (nll * row_weights).sum(), nll
    return _WeightedNLL.apply(rows.candidates, row_weights, *rows[:-1])


def _logits(base: Tensor, unembedding: Tensor, bias: Tensor | None) -> Tensor:
    logits = (base @ unembedding.T).float()
    return logits if bias is None else logits + bias.float()


class _WeightedNLL(torch.autograd.Function):
    """With s = softmax(U + r) on L, t = softmax(U) on L, o = softmax(U) off L and c = ε − [y ∉ L]:
    ∂nll/∂U = [y ∈ L](s − 1_y) − c·t on L, [y ∉ L](o − 1_y) + c·o off it; ∂nll/∂r = [y ∈ L](s − 1_y); ∂nll/∂δ = c."""

    @staticmethod
    def forward(ctx, candidates, row_weights, targets, *tensors):
        ctx.dtypes = [None if x is None else x.dtype for x in tensors]
        needed = ctx.needs_input_grad[3:]
        grads = [torch.zeros_like(x, dtype=torch.float32) if n else None for x, n in zip(tensors, needed, strict=True)]
        base_grad, correction_grad, shift_grad, unembedding_grad, readout_grad, bias_grad = ctx.grads = grads
        base, correction, shift, unembedding, readout, bias = tensors
        device = targets.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            base, correction, unembedding, readout = (x.to(dtype) for x in (base, correction, unembedding, readout))
        nll = torch.empty(len(targets), dtype=torch.float32, device=targets.device)
        rows = chunk_rows(len(unembedding))
        with torch.autocast(device, enabled=False):
            for start in range(0, len(targets), rows):
                part = slice(start, start + rows)
                weight, target = row_weights[part, None], targets[part, None]
                logits = _logits(base[part], unembedding, bias)
                inside, tokens = logits.topk(candidates)
                told = logits.gather(-1, target)
                outside = logits.scatter_(-1, tokens, -torch.inf).logsumexp(-1, keepdim=True)
                odds = outside - inside.logsumexp(-1, keepdim=True) + shift[part, None].float()
                table = readout[tokens]
                scores = inside + torch.bmm(table, correction[part, :, None])[..., 0].float()
                hit = tokens == target
                stays = hit.any(-1, keepdim=True)
                on = softplus(odds) + scores.logsumexp(-1, keepdim=True) - (scores * hit).sum(-1, keepdim=True)
                nll[part] = torch.where(stays, on, softplus(-odds) + outside - told)[:, 0]
                escaped = weight * ~stays
                change = weight * odds.sigmoid() - escaped
                score_grad = (scores.softmax(-1) - hit.float()) * (weight * stays)
                grad = logits.sub_(outside).exp_().mul_(change + escaped)
                grad.scatter_add_(-1, target, -escaped)
                grad.scatter_(-1, tokens, score_grad - change * inside.softmax(-1))
                if shift_grad is not None:
                    shift_grad[part] = change[:, 0]
                if bias_grad is not None:
                    bias_grad += grad.sum(0)
                grad, score_grad = grad.to(base.dtype), score_grad.to(readout.dtype)
                if base_grad is not None:
                    base_grad[part] = (grad @ unembedding).float()
                if unembedding_grad is not None:
                    if grad.dtype == torch.float32:
                        unembedding_grad.addmm_(grad.T, base[part])
                    else:
                        unembedding_grad += (grad.T @ base[part]).float()
                if correction_grad is not None:
                    correction_grad[part] = torch.bmm(score_grad[:, None], table)[:, 0].float()
                if readout_grad is not None:
                    outer = score_grad[..., None] * correction[part, None]
                    readout_grad.index_add_(0, tokens.flatten(), outer.flatten(0, 1).float())
        ctx.mark_non_differentiable(nll)
        return (nll * row_weights).sum(), nll

    @staticmethod
    def backward(ctx, upstream, _):
        return None, None, None, *given_once(ctx, upstream)
