"""Whether what a refiner needs fits, said before any work starts."""

from __future__ import annotations

from pathlib import Path

import torch

from nerve_kernels._operators.checks import refusal


def free_bytes(device: torch.device) -> int | None:
    """Memory that can be had on a device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        return None
    kibibytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return 1024 * kibibytes[0] if kibibytes else None


def refuse_beyond_memory(name: str, needed: int, device: torch.device, do: str) -> None:
    """Raise where ``needed`` bytes are more than ``device`` has free.

    Raises:
        MemoryError: with both numbers, and what to do.
    """
    free = free_bytes(device)
    if free is not None and needed > free:
        wanted = f"a problem that fits into the {free / 2**20:,.0f} MiB free on {device}"
        raise MemoryError(refusal(name, wanted, f"one that takes {needed / 2**20:,.0f} MiB", do))
