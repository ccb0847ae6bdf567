import pytest
import torch
from torch.nn.functional import cross_entropy

from mtp.losses import linear_nll


def problem(dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    n, v, sizes = 37, 11, (5, 3)
    inputs = [torch.randn(n, f, generator=g, dtype=dtype, requires_grad=True) for f in sizes]
    tables = [torch.randn(v, f, generator=g, dtype=dtype, requires_grad=True) for f in sizes]
    bias = torch.randn(v, generator=g, dtype=dtype, requires_grad=True)
    return inputs, tables, bias, torch.randint(v, (n,), generator=g), torch.rand(n, generator=g)


def naive(inputs, tables, bias, targets):
    logits = sum(x @ w.T for x, w in zip(inputs, tables, strict=True)) + bias
    return cross_entropy(logits.float(), targets, reduction="none")


@pytest.mark.parametrize("chunk", [1, 55, 10**6])  # rows per chunk: 1, 5, all
def test_chunks_give_the_naive_loss_and_gradients(monkeypatch, chunk):
    monkeypatch.setattr(linear_nll, "CHUNK_LOGITS", chunk)
    inputs, tables, bias, targets, weights = problem()
    everything = [*inputs, *tables, bias]
    loss, rows = linear_nll.weighted_nll(inputs, tables, targets, weights, bias)
    expected = naive(inputs, tables, bias, targets)
    assert torch.allclose(rows, expected, atol=1e-6)
    grads = torch.autograd.grad(3 * loss, everything)
    by_rows = torch.autograd.grad((3 * linear_nll.row_nll(inputs, tables, targets, bias) * weights).sum(), everything)
    reference = torch.autograd.grad((3 * expected * weights).sum(), everything)
    for one, two, three in zip(grads, by_rows, reference, strict=True):
        assert torch.allclose(one, three, atol=1e-5) and torch.allclose(two, three, atol=1e-5)


def test_frozen_tables_get_no_gradient_and_rows_of_weight_zero_give_none():
    inputs, tables, bias, targets, weights = problem()
    tables[0] = tables[0].detach()
    weights[5:] = 0
    loss, _ = linear_nll.weighted_nll(inputs, tables, targets, weights, bias)
    loss.backward()
    assert tables[0].grad is None and tables[1].grad is not None
    assert (inputs[0].grad[5:] == 0).all() and (inputs[0].grad[:5] != 0).any()


def test_under_bf16_autocast_the_softmax_stays_in_fp32():
    inputs, tables, bias, targets, weights = problem()
    with torch.autocast("cpu", torch.bfloat16):
        loss, rows = linear_nll.weighted_nll(inputs, tables, targets, weights, bias)
    assert rows.dtype == torch.float32
    assert torch.allclose(rows, naive(inputs, tables, bias, targets), atol=0.1)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(loss, inputs + tables))
