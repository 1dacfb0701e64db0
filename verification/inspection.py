"""Compiles a Triton launch for a GPU that need not be there, and counts what the compiler made of it."""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nerve_kernels._triton.compilation import specialised
from nerve_kernels._triton.launch import Launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# What one program may use. Launches know Hopper, with 227 KiB, from other NVIDIA GPUs, and those must do with what
# sm_86, sm_89 and sm_120 have.
SHARED_MEMORY_LIMIT = dict.fromkeys(TARGETS, 99 * 1024) | {"sm_90": 227 * 1024, "gfx942": 64 * 1024}
NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Compiled:
    """What one kernel takes on one target. ``spills`` counts spilled registers or loads and stores of local memory."""

    registers: int
    shared_bytes: int
    spills: int
    tensor_core_instructions: int
    loads_of_128_bits: int
    instructions: int


def compile_for(launch: Launch, target: str) -> Compiled:
    """Compile a launch, planned for such a machine, for one of ``TARGETS`` and count."""
    signature, constants, attributes = specialised(launch)
    source = ASTSource(launch.kernel, signature, constexprs=constants, attrs=attributes)
    kernel = triton.compile(source, target=TARGETS[target], options=launch.options())
    if TARGETS[target].backend == "hip":
        return _of_amd(kernel)
    return _of_nvidia(kernel)


def _of_nvidia(kernel: Any) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _output(NVIDIA_TOOLS / "cuobjdump", "-res-usage", file.name)
        # without its analysis of dataflow, which changes nothing that is printed and takes a third of the time
        sass = _output(NVIDIA_TOOLS / "nvdisasm", "-c", "-ndf", file.name)
    return Compiled(
        registers=int(re.findall(r"REG:(\d+)", usage)[-1]),
        shared_bytes=kernel.metadata.shared,
        spills=len(re.findall(r"\b(?:LDL|STL)\b", sass)) + int(re.findall(r"LOCAL:(\d+)", usage)[-1]),
        tensor_core_instructions=len(re.findall(r"\b(?:HMMA|HGMMA|UTC\w*MMA)\b", sass)),
        loads_of_128_bits=len(re.findall(r"\b(?:LDG|LDGSTS)\.[\w.]*128", sass)),
        instructions=len(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/", sass, re.MULTILINE)),
    )


def _of_amd(kernel: Any) -> Compiled:
    text = kernel.asm["amdgcn"]
    # scalar registers spill into lanes of vector registers; memory is touched only where scratch is reserved
    registers, *spills = (
        int(re.findall(rf"\.{name}:\s*(\d+)", text)[-1])
        for name in ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
    )
    return Compiled(
        registers=registers,
        shared_bytes=kernel.metadata.shared,
        spills=sum(spills),
        tensor_core_instructions=len(re.findall(r"\bv_mfma_", text)),
        loads_of_128_bits=len(re.findall(r"\b(?:global|buffer)_load_dwordx4", text)),
        instructions=len(re.findall(r"^\s+[vs]_\w+", text, re.MULTILINE)),
    )


def _output(*command: Any) -> str:
    return subprocess.run([str(item) for item in command], capture_output=True, text=True, check=True).stdout


def rows_allow_wide_loads(matrix: Tensor) -> bool:
    """Whether every row of a matrix starts at a multiple of 16 bytes."""
    return matrix.stride(-1) == 1 and math.gcd(*matrix.stride()[:-1]) * matrix.element_size() % 16 == 0
