"""Peak memory of one call beyond what was there before it, result included, and what is there to be had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nerve_kernels._peak_memory import PeakMemory, can_measure

__all__ = ["available_bytes", "can_measure", "peak_extra_bytes"]


def available_bytes(device: str) -> int | None:
    """Memory that could be allocated now, or None where the system does not say."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def peak_extra_bytes(call: Callable[[], Any], device: str = "cpu") -> int | None:
    """Bytes by which one call raised the peak; None where it cannot be measured. Run the call once before."""
    with PeakMemory(device) as peak:
        call()
    return peak.bytes
