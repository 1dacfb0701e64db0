"""The environment variables that change how the package runs or is built: one table, and what reads them in Python."""

from __future__ import annotations

import os
from typing import NamedTuple


class Variable(NamedTuple):
    """One variable, or several that belong together: names, effect, and when it is read."""

    names: tuple[str, ...]
    effect: str
    read: str


VARIABLES = (
    Variable(
        ("ATEN_CPU_CAPABILITY",),
        "`default` or `avx2` lowers the instruction set of the C++ kernels, as it does torch's own",
        "once, at the first call",
    ),
    Variable(
        ("TRITON_INTERPRET",),
        "`1`: a `triton` backend that you name runs on CPU tensors, in Triton's interpreter: for tests",
        "at each call",
    ),
    Variable(
        ("NERVE_KERNELS_STATISTICS_MEMORY",),
        "MiB that a pipeline may keep of one image so that other head weights cost no new pass (1024); 0 keeps nothing",
        "at each image",
    ),
    Variable(
        ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"),
        "set by `torchrun`: `nerve-evaluate` divides the images among its processes",
        "when an evaluation starts",
    ),
    Variable(("CXX", "CXXFLAGS"), "the C++ compiler, and more options for it", "at build time"),
    Variable(
        ("FORCE_CUDA",),
        "`1`: the CUDA extension is compiled too, and a build without the compiled operators fails",
        "at build time",
    ),
    Variable(("CUDA_HOME", "CUDA_PATH"), "where nvcc is, if not on the PATH", "at build time"),
    Variable(("TORCH_CUDA_ARCH_LIST",), "the GPUs that the CUDA extension is compiled for", "at build time"),
)


def statistics_memory() -> int:
    """Bytes that a pipeline may keep of every head's attention to windows and cells."""
    text = os.environ.get("NERVE_KERNELS_STATISTICS_MEMORY", "1024")
    if not text.isdecimal():
        raise ValueError(f"NERVE_KERNELS_STATISTICS_MEMORY: expected MiB as a whole number ≥ 0, got {text!r}")
    return int(text) << 20


def interpreting_triton() -> bool:
    """Whether kernels run on the CPU in Triton's interpreter, which is for tests and thousands of times slower."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")
