"""Peak memory of a piece of work, above what was held before it."""

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path

import torch

STATM = Path("/proc/self/statm")


def peak_memory(run: Callable[[], object], device: torch.device) -> float | None:
    """Bytes: of the allocator on a GPU; of resident memory, looked at every millisecond, on Linux; else None."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before)
    if not STATM.exists():
        return None
    _return_freed_memory()
    before, peak, done = _resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            peak[0] = max(peak[0], _resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return float(max(0, max(peak[0], _resident()) - before))


def _return_freed_memory() -> None:
    """What an earlier contender left in the C library's heap would hide what this one takes."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _resident() -> int:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
