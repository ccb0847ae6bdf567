import math

import pytest
import torch

from flowmap.kernels import KERNELS, RBF, Energy, Laplace, distances, mmd2

X, Y = torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
WIDTH = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)


def value(kernel, x, y, w):
    far = math.sqrt(max(sum((a - b) ** 2 for a, b in zip(x.tolist(), y.tolist(), strict=True)), 1e-8))
    size = len(x)
    if isinstance(kernel, Laplace):
        return math.exp(-w * far / size if kernel.sharpness is None else -kernel.sharpness * w * far / size**0.5)
    if isinstance(kernel, RBF):
        return math.exp(-((kernel.sharpness * w * far) ** 2) / (2 * size))
    return -w * far / size**0.5


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("statistic", ["v", "u", "paired-u"])
def test_mmd_is_the_double_loop(kernel, statistic):
    size = X.shape[1]
    for g in range(3):
        total = 0.0
        for i in range(size):
            for j in range(size):
                k = lambda a, b, i=i, j=j, g=g: value(kernel, a[g, i], b[g, j], float(WIDTH[g]))  # noqa: E731
                if statistic == "v":
                    total += (k(X, X) + k(Y, Y) - 2 * k(X, Y)) / size**2
                else:
                    total += (i != j) * (k(X, X) + k(Y, Y)) / (size * (size - 1))
                    if statistic == "u":
                        total -= 2 * k(X, Y) / size**2
                    else:
                        total -= (i != j) * 2 * k(X, Y) / (size * (size - 1))
        assert float(mmd2(kernel, X, Y, WIDTH, statistic)[g]) == pytest.approx(total, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_the_v_statistic_is_a_squared_distance(kernel):
    assert (mmd2(kernel, X, Y, WIDTH) > 0).all()
    assert mmd2(kernel, X, X, WIDTH).abs().max() < 1e-12


def test_equal_points_have_a_finite_gradient():
    x = X[:, :2].clone()
    x[:, 1] = x[:, 0]
    x.requires_grad_()
    distances(x, x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_half_precision_is_measured_in_full():
    assert distances(X.bfloat16(), Y.bfloat16()).dtype == torch.float32
    assert mmd2(Energy(), X.bfloat16(), X.bfloat16() + 1e-2, WIDTH.float()).isfinite().all()


def test_unpaired_groups_have_no_paired_statistic():
    with pytest.raises(ValueError, match="at least 2"):
        mmd2(Energy(), X[:, :1], Y[:, :1], WIDTH, "paired-u")
