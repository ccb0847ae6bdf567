"""What the machine is good at: number type, thread count, and its name for the record."""

import ctypes
import os
import platform
import time
from collections.abc import Callable

import torch


def resolve_precision(asked: str, device: torch.device) -> str:
    """'auto' → bfloat16 on GPUs and on CPUs with instructions for it (AMX: ten times fp32's products;
    AVX512-BF16: four times; without either five times slower)."""
    if asked != "auto":
        return asked
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if device.type == "cuda" or native else "float32"


def choose_threads(work: Callable[[], object]) -> int:
    """The faster of one thread and all of them on the caller's own work: on shared cores tiny
    networks can run many times slower with two threads than with one."""
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    seconds = {}
    for threads in {1, most}:
        torch.set_num_threads(threads)
        work()
        start = time.perf_counter()
        for _ in range(3):
            work()
        seconds[threads] = time.perf_counter() - start
    return min(seconds, key=seconds.__getitem__)


def describe() -> dict[str, str | int]:
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    return {"hardware": name, "cores": os.cpu_count() or 1, "threads": torch.get_num_threads()}


def quiet_libraries() -> None:
    """No progress bars from transformers and datasets: ours say what matters."""
    from datasets import disable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    disable_progress_bars()


def keep_freed_memory() -> None:
    """Have glibc hold on to blocks that tensors leave, up to 2 GB each, instead of giving them back to the system at once and
    faulting their pages in again at the next step: 6 to 12% of a head's training step on CPU. Elsewhere does nothing."""
    trim_threshold, mmap_threshold, most = -1, -3, 2**31 - 1
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return
    mallopt(trim_threshold, most)
    mallopt(mmap_threshold, most)
