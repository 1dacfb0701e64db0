"""Peak memory of a block of code beyond what was there before it.

On the CPU this is the kernel's own high-water mark of resident memory, which Linux lets a process reset: it sees what
torch allocates and what anybody else does. On a GPU it is that of torch's allocator.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import sys
from pathlib import Path
from types import TracebackType

import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_highest_before_a_reset = 0


def can_measure(device: str) -> bool:
    """Whether :class:`PeakMemory` works here."""
    return device == "cuda" or (_CLEAR.exists() and _STATUS.exists())


class PeakMemory:
    """``with PeakMemory() as peak: …``, and ``peak.bytes`` is what the block took at its highest.

    None where it cannot be measured. Memory that a block's first call takes for good is counted too.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.bytes: int | None = None
        self._device = device
        self._before = 0

    def __enter__(self) -> PeakMemory:
        global _highest_before_a_reset
        if can_measure(self._device):
            gc.collect()
            if self._device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                self._before = torch.cuda.memory_allocated()
            else:
                _return_free_memory()
                self._before = _resident("VmRSS")
                _highest_before_a_reset = max(_highest_before_a_reset, _resident("VmHWM"))
                _CLEAR.write_text("5", encoding="ascii")  # the high-water mark becomes the present size
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not can_measure(self._device):
            return
        if self._device == "cuda":
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated()
        else:
            peak = _resident("VmHWM")
        self.bytes = max(0, peak - self._before)


def highest_resident_bytes() -> int | None:
    """The largest that this process has been, resets of the high-water mark included; None where nobody says."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max(_highest_before_a_reset, peak if sys.platform == "darwin" else peak * 1024)


def _resident(name: str) -> int:
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _return_free_memory() -> None:
    """Freed memory that malloc keeps would be used again unseen; glibc can be told to give it back."""
    library = ctypes.CDLL(ctypes.util.find_library("c"))
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
