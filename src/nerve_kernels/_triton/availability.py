"""When the Triton kernels can run, why not where they cannot, and how they are imported only when they do."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MAX_HEAD_SIZE = 256  # larger ones would need more shared memory than the tiles in these files leave
MIN_CUDA_CAPABILITY = (8, 0)  # bfloat16 and asynchronous copies


def run_lazily(operation: str) -> Callable[..., Any]:
    """``nerve_kernels._triton.<operation>.run``, imported (and triton with it) at its first call."""

    def run(*arguments: Any) -> Any:
        return importlib.import_module(f"nerve_kernels._triton.{operation}").run(*arguments)

    return run


def interpreting() -> bool:
    """Whether kernels run on the CPU in Triton's interpreter, which is for tests and thousands of times slower."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


@functools.cache
def missing_triton() -> str | None:
    """Why triton cannot be imported, or None; looks for it without importing it."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; install it with `pip install triton`"
    return None


def why_unsupported_machine() -> str | None:
    """Why no operation can run on Triton on this machine, or None."""
    reason = missing_triton()
    if reason is None and not interpreting() and not torch.cuda.is_available():
        return "torch sees no GPU"
    return reason


def why_unsupported_attention(tensors: tuple[Tensor, ...]) -> str | None:
    """Why the kernels on q and k cannot take these tensors, q first, or None."""
    head_size = tensors[0].shape[-1]
    if head_size > MAX_HEAD_SIZE:
        return f"it holds whole heads on chip and takes head sizes up to {MAX_HEAD_SIZE}, got {head_size}"
    return why_unsupported_maps(tensors)


def why_unsupported_maps(tensors: tuple[Tensor, ...]) -> str | None:
    """Why the kernels on explicit maps cannot take these tensors, or None."""
    return missing_triton() or _why_unsupported_device(tensors) or _why_unsupported_dtypes(tensors)


def why_unsupported_walk(tensors: tuple[Tensor, ...]) -> str | None:
    """Why the kernels of the walk cannot take seeds and the parts of an affinity, or None."""
    return missing_triton() or _why_unsupported_device(tensors) or _why_unsupported_dtypes(tensors)


def _why_unsupported_device(tensors: tuple[Tensor, ...]) -> str | None:
    devices = sorted({tensor.device.type for tensor in tensors})
    if devices == ["cuda"]:  # what torch calls ROCm devices too
        capability = torch.cuda.get_device_capability(tensors[0].device)
        if torch.version.hip is None and capability < MIN_CUDA_CAPABILITY:
            return f"it needs compute capability 8.0 or newer, this GPU has {capability[0]}.{capability[1]}"
        return None
    if devices == ["cpu"] and interpreting():
        return None
    came = ", ".join(devices)
    return f"it runs on cuda or rocm tensors, got {came}; for tests, TRITON_INTERPRET=1 interprets it on the cpu"


def _why_unsupported_dtypes(tensors: tuple[Tensor, ...]) -> str | None:
    dtypes = {tensor.dtype for tensor in tensors}
    if torch.float64 in dtypes:
        return "it computes in float32, got float64 inputs"
    if interpreting() and torch.bfloat16 in dtypes:
        return "Triton's interpreter multiplies bfloat16 wrongly; use float32 or float16 there"
    return None
