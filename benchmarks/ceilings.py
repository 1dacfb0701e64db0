"""What the machine at hand can do at most, measured: operations, bytes read and exponentials a second.

On a CPU by three small loops compiled for it (``ceilings.cpp``); without a C++ compiler by torch's own matrix product,
sum and exp, and labelled so, because a library's best is not the machine's. On a GPU by torch's copy and matrix
product, and by a loop of exponentials in registers.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks import gpu_exponentials
from benchmarks.measure import milliseconds

ROOT = Path(__file__).parent.parent
SOURCE = Path(__file__).parent / "ceilings.cpp"
HEADERS = ROOT / "csrc" / "cpu" / "kernels"
BUILD = ROOT / "build" / "benchmarks"


@dataclass(frozen=True)
class Ceilings:
    """Rates in units of 10⁹ a second, and where they come from."""

    gflops: float
    gbytes: float
    gexps: float
    source: str

    def percent(self, *, bytes: int, operations: int, exponentials: int, seconds: float) -> dict[str, float]:
        """How much of each ceiling so much work in so many seconds is."""
        return {
            "percent_of_fma_peak": 100 * operations / seconds / (1e9 * self.gflops),
            "percent_of_bandwidth": 100 * bytes / seconds / (1e9 * self.gbytes),
            "percent_of_exp_rate": 100 * exponentials / seconds / (1e9 * self.gexps),
        }

    def __str__(self) -> str:
        return f"{self.gflops:.0f} GFLOP/s, {self.gbytes:.0f} GB/s, {self.gexps:.1f} G exp/s ({self.source})"


def measure_ceilings(device: str, dtype: torch.dtype = torch.float32) -> Ceilings:
    """Of this machine, with as many threads as torch uses; on a GPU for products of one dtype."""
    if device == "cuda":
        return _of_gpu(dtype)
    library = compiled_loops()
    if library is None:
        return _of_torch()
    threads = ctypes.c_int(torch.get_num_threads())
    names = ("fused_multiply_add_rate", "read_rate", "exponential_rate")
    rates = []
    for name in names:
        function = getattr(library, name)
        function.restype = ctypes.c_double
        rates.append(function(threads) / 1e9)
    return Ceilings(*rates, source="loops of benchmarks/ceilings.cpp, FMA, read and exp")


def compiled_loops() -> ctypes.CDLL | None:
    """``ceilings.cpp`` compiled for this machine, or None where there is no compiler that can."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)
    if compiler is None:
        return None
    content = SOURCE.read_bytes() + (HEADERS / "vector_math.h").read_bytes() + compiler.encode()
    target = BUILD / f"ceilings-{hashlib.sha256(content).hexdigest()[:16]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [*compiler.split(), "-std=gnu++20", "-O3", "-march=native", "-w", "-shared", "-fPIC", "-pthread"]
        command += ["-I", str(HEADERS), str(SOURCE), "-o", str(target)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
    return ctypes.CDLL(str(target))


def _best(call: Callable[[], object], device: str, repeats: int = 7) -> float:
    """Seconds of the fastest call."""
    call()
    return 1e-3 * min(milliseconds(call, device) for _ in range(repeats))  # type: ignore[arg-type]


def _of_torch() -> Ceilings:
    matrix, vector = torch.rand(2048, 2048), torch.rand(2**26)
    numbers = torch.rand(2**22)
    return Ceilings(
        2 * 2048**3 / _best(lambda: matrix @ matrix, "cpu") / 1e9,
        4 * 2**26 / _best(lambda: vector.sum(), "cpu") / 1e9,
        2**22 / _best(lambda: torch.exp(numbers), "cpu") / 1e9,
        source="no C++ compiler: torch's GEMM, sum and exp, which are below the machine's peak",
    )


def _of_gpu(dtype: torch.dtype) -> Ceilings:
    matrix = torch.rand(8192, 8192, device="cuda", dtype=dtype)
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    gexps, whose = gpu_exponentials.rate()
    return Ceilings(
        2 * 8192**3 / _best(lambda: matrix @ matrix, "cuda") / 1e9,
        2 * 4 * 2**28 / _best(lambda: target.copy_(source), "cuda") / 1e9,
        gexps,
        source=f"torch's {str(dtype).removeprefix('torch.')} GEMM, its copy (read and write), exp {whose}",
    )
