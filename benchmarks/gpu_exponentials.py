"""How many exponentials a second a GPU can take, from registers: an element-wise exp is bound by memory long before.

An H100 has 16 a clock on each of 132 multiprocessors, 3.7 · 10¹² a second.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from benchmarks.measure import milliseconds

ROUNDS, ELEMENTS, WARPS = 2048, 2048, 8
PROGRAMS = 132 * 8 * 4


def launch_of_exponentials(out: torch.Tensor) -> tuple[Any, int, dict[str, Any], dict[str, Any]]:
    """Kernel, programs, arguments and options; ``out`` (PROGRAMS · ELEMENTS,) float32."""
    from benchmarks.gpu_kernels import exponentials_kernel

    constants = {"ROUNDS": ROUNDS, "ELEMENTS": ELEMENTS}
    return exponentials_kernel, PROGRAMS, {"out": out, **constants}, {"num_warps": WARPS}


def rate() -> tuple[float, str]:
    """Exponentials in units of 10⁹ a second, and where the figure comes from."""
    if importlib.util.find_spec("triton") is None:
        numbers = torch.rand(2**24, device="cuda")
        seconds = 1e-3 * min(milliseconds(lambda: torch.exp(numbers), "cuda") for _ in range(7))
        return 2**24 / seconds / 1e9, "torch's, which memory binds (no triton)"
    out = torch.empty(PROGRAMS * ELEMENTS, device="cuda")
    kernel, programs, arguments, options = launch_of_exponentials(out)

    def call() -> torch.Tensor:
        kernel[(programs,)](**arguments, **options)
        return out

    call()
    seconds = 1e-3 * min(milliseconds(call, "cuda") for _ in range(7))
    return PROGRAMS * ELEMENTS * ROUNDS / seconds / 1e9, "in registers"
