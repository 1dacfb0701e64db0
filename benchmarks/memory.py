"""Peak memory of one call beyond what was there before it, result included.

On the CPU this is the kernel's own high-water mark of resident memory, which Linux lets a process reset: it sees what
torch allocates and what anybody else does. On a GPU it is that of torch's allocator.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def available_bytes(device: str) -> int | None:
    """Memory that could be allocated now, or None where the system does not say."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def can_measure(device: str) -> bool:
    """Whether :func:`peak_extra_bytes` works here."""
    return device == "cuda" or (_CLEAR.exists() and _STATUS.exists())


def peak_extra_bytes(call: Callable[[], Any], device: str = "cpu") -> int | None:
    """Bytes by which one call raised the peak; None where it cannot be measured. Run the call once before."""
    if not can_measure(device):
        return None
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    _return_free_memory()
    before = _resident("VmRSS")
    _CLEAR.write_text("5", encoding="ascii")  # the high-water mark becomes the present size
    result = call()
    peak = _resident("VmHWM")
    del result
    return max(0, peak - before)


def _resident(name: str) -> int:
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _return_free_memory() -> None:
    """Freed memory that malloc keeps would be used again unseen; glibc can be told to give it back."""
    library = ctypes.CDLL(ctypes.util.find_library("c"))
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
