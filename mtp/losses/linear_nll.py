"""Negative log-likelihood under softmax(Σ_i x_i W_iᵀ + b), in chunks of rows.

A head's logits are a sum of linear readouts: the trunk's unembedding of one vector plus a low-rank
correction of another. For N rows and V words the logits take N·V floats; here at most `CHUNK_LOGITS`
exist at once, and their gradient is formed in the same sweep, so training does the same three
matrix products per term as the naive form and reads the logits from cache.
Sums of terms and log-softmax are fp32. Under autocast each product is computed and rounded in its
type (bf16: 8 bits, an error of 0.06 at a logit of 20), so what is reported is scored without it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 2**22
"""Logits held at once: 16 MiB of fp32, 128 rows at V = 32k (fewer rows make the products slow)."""


def weighted_nll(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    targets: Tensor,
    row_weights: Tensor,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Σ_n w_n · nll_n, to differentiate, and the rows' own nll (nats, fp32, detached).

    inputs: list of (N, F_i); weights: list of (V, F_i); targets: (N,); row_weights: (N,).
    Gradients flow to inputs, weights and bias, not to row_weights. Rows of weight 0 may hold any
    target in range.
    """
    if not torch.is_grad_enabled():
        nll = row_nll(inputs, weights, targets, bias)
        return (nll * row_weights).sum(), nll
    return _WeightedNLL.apply(targets, row_weights, bias, len(inputs), *inputs, *weights)


def row_nll(inputs: Sequence[Tensor], weights: Sequence[Tensor], targets: Tensor, bias: Tensor | None = None) -> Tensor:
    """−log p(target) of every row, (N,), nats. Differentiable: chunks are recomputed backwards."""

    def piece(targets: Tensor, *inputs: Tensor) -> Tensor:
        return cross_entropy(_logits(inputs, weights, bias), targets, reduction="none")

    rows = chunk_rows(weights[0].shape[0])
    pieces = zip(targets.split(rows), *(x.split(rows) for x in inputs), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(piece, *part, use_reentrant=False) for part in pieces])
    return torch.cat([piece(*part) for part in pieces])


def chunk_rows(vocab_size: int) -> int:
    return max(1, CHUNK_LOGITS // vocab_size)


def _logits(inputs: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    logits = (inputs[0] @ weights[0].T).float()
    for x, weight in zip(inputs[1:], weights[1:], strict=True):
        if x.dtype == torch.float32:
            logits.addmm_(x, weight.T)
        else:
            logits = logits + (x @ weight.T).float()
    return logits if bias is None else logits + bias.float()


class _WeightedNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, targets, row_weights, bias, num_terms, *tensors):
        inputs, weights = list(tensors[:num_terms]), list(tensors[num_terms:])
        ctx.num_terms, ctx.grads = num_terms, [None] * (1 + len(tensors))
        for i, tensor in enumerate((bias, *tensors)):
            if ctx.needs_input_grad[2 if i == 0 else i + 3]:
                ctx.grads[i] = torch.zeros_like(tensor, dtype=torch.float32)
        bias_grad, input_grads, weight_grads = (
            ctx.grads[0],
            ctx.grads[1 : 1 + num_terms],
            ctx.grads[1 + num_terms :],
        )
        device = targets.device.type
        if torch.is_autocast_enabled(device):
            inputs = [x.to(torch.get_autocast_dtype(device)) for x in inputs]
            weights = [w.to(torch.get_autocast_dtype(device)) for w in weights]
        nll = torch.empty(len(targets), dtype=torch.float32, device=targets.device)
        rows = chunk_rows(weights[0].shape[0])
        with torch.autocast(device, enabled=False):
            for start in range(0, len(targets), rows):
                part = slice(start, start + rows)
                logits = _logits([x[part] for x in inputs], weights, bias)
                index = targets[part, None]
                normaliser = logits.logsumexp(-1, keepdim=True)
                nll[part] = (normaliser - logits.gather(-1, index)).squeeze(-1)
                if all(grad is None for grad in ctx.grads):
                    continue
                # d nll / d logits = softmax − onehot, written over the logits
                grad = logits.sub_(normaliser).exp_()
                grad.scatter_add_(-1, index, grad.new_full(index.shape, -1.0))
                grad *= row_weights[part, None]
                if bias_grad is not None:
                    bias_grad += grad.sum(0)
                grad = grad.to(weights[0].dtype)
                for x, weight, x_grad, weight_grad in zip(inputs, weights, input_grads, weight_grads, strict=True):
                    if x_grad is not None:
                        x_grad[part] = (grad @ weight).float()
                    if weight_grad is not None:
                        if grad.dtype == torch.float32:
                            weight_grad.addmm_(grad.T, x[part])
                        else:
                            weight_grad += (grad.T @ x[part]).float()
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (bias, *tensors)]
        ctx.mark_non_differentiable(nll)
        return (nll * row_weights).sum(), nll

    @staticmethod
    def backward(ctx, upstream, _):
        bias, *grads = given_once(ctx, upstream)
        return (None, None, bias, None, *grads)


def given_once(ctx: Any, upstream: Tensor) -> list[Tensor | None]:
    """The gradients that a forward sweep left in ctx.grads, to come back in ctx.dtypes."""
    if ctx.grads is None:
        raise RuntimeError("the sweep gives its gradients once: they are scaled in place")
    grads, ctx.grads = ctx.grads, None
    return [
        None if grad is None else grad.mul_(upstream).to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True)
    ]
