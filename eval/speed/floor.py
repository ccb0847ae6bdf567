"""The floor of a piece of work on this machine: bytes and FLOPs of its matrix products, and the time they
must take at the bandwidth and throughput measured here."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

_aten = torch.ops.aten
PRODUCTS = {
    _aten.mm, _aten.addmm, _aten.addmm_, _aten.bmm, _aten.baddbmm, _aten.linear,
    _aten._scaled_dot_product_flash_attention_for_cpu, _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_efficient_attention, _aten._scaled_dot_product_attention_math,
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """bytes: operands and results of every matrix product; flops: theirs."""

    bytes: int
    flops: int


@dataclass(frozen=True)
class Machine:
    """bandwidth: bytes/s of reading memory; throughput: FLOP/s of large products in a dtype."""

    bandwidth: float
    throughput: float

    def seconds(self, work: Work) -> float:
        """No faster than the slower of its two demands."""
        return max(work.bytes / self.bandwidth, work.flops / self.throughput)


class _ProductBytes(TorchDispatchMode):
    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in PRODUCTS:
            tensors = [x for x in args if isinstance(x, torch.Tensor)]
            tensors.append(out[0] if isinstance(out, tuple) else out)
            self.total += sum(x.numel() * x.element_size() for x in tensors)
        return out


def flop_counter() -> FlopCounterMode:
    """Counts matrix products, those added in place too, which torch's own table leaves out."""

    def product(_, a: torch.Size, b: torch.Size, **kwargs: Any) -> int:
        return 2 * a[0] * a[1] * b[1]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: product})


@torch.no_grad()
def measure_work(run: Callable[[], object]) -> Work:
    with flop_counter() as flops, _ProductBytes() as counted:
        run()
    return Work(counted.total, flops.get_total_flops())


@torch.no_grad()
def measure_machine(dtype: torch.dtype, device: torch.device) -> Machine:
    """Reading 1 GiB, and a product of 2048 × 2048 matrices: each the best of several."""
    large = torch.ones(2**28, dtype=torch.float32, device=device)
    bandwidth = large.nbytes / _best(lambda: large.sum(), device)
    a = torch.randn(2048, 2048, dtype=dtype, device=device)
    throughput = 2 * 2048**3 / _best(lambda: a @ a, device)
    return Machine(bandwidth, throughput)


def _best(work: Callable[[], object], device: torch.device, times: int = 8) -> float:
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best
