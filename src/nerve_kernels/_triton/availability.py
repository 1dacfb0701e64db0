"""When the Triton kernels can run, why not where they cannot, and how they are imported only when they do."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nerve_kernels._arguments import tensors_of, why_not_float64, why_not_on, why_not_on_gpu
from nerve_kernels.environment import interpreting_triton

MAX_HEAD_SIZE = 256  # larger ones would need more shared memory than the attention kernels' tiles leave


def run_lazily(module: str) -> Callable[..., Any]:
    """``run`` of ``nerve_kernels._triton.<module>``, imported (and triton with it) at its first call."""

    def run(*arguments: Any) -> Any:
        return importlib.import_module(f"nerve_kernels._triton.{module}").run(*arguments)

    return run


@functools.cache
def missing_triton() -> str | None:
    """Why triton cannot be imported, or None; looks for it without importing it."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; install it with `pip install triton`"
    return None


def why_not_here() -> str | None:
    """Why no operation can run on Triton on this machine, or None."""
    reason = missing_triton()
    if reason is None and not interpreting_triton() and not torch.cuda.is_available():
        return "torch sees no GPU"
    return reason


def why_unsupported(*arguments: Any) -> str | None:
    """Why no kernel can take what the arguments hold, or None."""
    tensors = tensors_of(arguments)
    reason = missing_triton() or _why_not_on_device(tensors) or why_not_float64(tensors)
    if reason is None and interpreting_triton() and any(tensor.dtype == torch.bfloat16 for tensor in tensors):
        return "Triton's interpreter multiplies bfloat16 wrongly; use float32 or float16 there"
    return reason


def why_unsupported_heads(q: Tensor, *arguments: Any) -> str | None:
    """Why the kernels on q and k cannot take them, or None."""
    if q.shape[-1] > MAX_HEAD_SIZE:
        return f"it holds whole heads on chip and takes head sizes up to {MAX_HEAD_SIZE}, got {q.shape[-1]}"
    return why_unsupported(q, *arguments)


def _why_not_on_device(tensors: list[Tensor]) -> str | None:
    if interpreting_triton() and why_not_on("cpu", tensors) is None:
        return None
    reason = why_not_on_gpu(tensors, "cuda or rocm")
    if reason is not None and why_not_on("cuda", tensors) is not None:
        return f"{reason}; for tests, TRITON_INTERPRET=1 interprets it on the cpu"
    return reason
