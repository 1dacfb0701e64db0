"""What the compilers make of every Triton kernel, without a GPU: ``python -m verification.static_grid``.

Compiles each kernel × precision × head size for each target, writes registers, shared memory, spills, tensor-core
instructions and 128-bit loads to ``benchmarks/results/gpu_static.csv``, and fails where a kernel spills, needs more
shared memory than the smallest GPU of its kind has, leaves tensor cores idle, or reads an aligned row in small pieces.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import triton
from benchmarks.tables import write_rows
from torch import Tensor
from verification.attention_launches import HEAD_SIZES, PRECISIONS, attention_launches, machine_with, map_launches
from verification.checks import ROOT
from verification.inspection import SHARED_MEMORY_LIMIT, TARGETS, Compiled, compile_for, rows_allow_wide_loads
from verification.sparse_launches import sparse_launches
from verification.walk_launches import walk_launches

from nerve_kernels._triton.launch import Launch

RESULTS = ROOT / "benchmarks" / "results" / "gpu_static.csv"
Case = tuple[str, int, str]


def launches(precision: str, head_size: int, target: str) -> Iterator[tuple[str, Launch]]:
    """Every launch of one case, named by its operation; a head size of 0 means explicit maps and the walk."""
    with machine_with(TARGETS[target]):
        if head_size:
            found = attention_launches(precision, head_size)
        else:
            found = walk_launches(precision)
            if precision != "tf32":  # which means nothing to maps, or where nothing is multiplied as a matrix
                dtype = PRECISIONS[precision][0]
                found |= map_launches(dtype) | sparse_launches(dtype)
    for operation, several in found.items():
        for launch in several:
            yield operation, launch


def faults(launch: Launch, precision: str, target: str, compiled: Compiled) -> list[str]:
    """What is wrong with a compiled kernel, in words."""
    found = []
    if compiled.spills:
        found.append(f"{compiled.spills} spills")
    if compiled.shared_bytes > SHARED_MEMORY_LIMIT[target]:
        found.append(f"{compiled.shared_bytes} bytes of shared memory, of {SHARED_MEMORY_LIMIT[target]}")
    has_dot = "PRECISION" in launch.constants
    if has_dot and precision != "fp32" and not compiled.tensor_core_instructions:
        found.append("no tensor-core instruction")
    matrix = next((launch.arguments[name] for name in ("q", "maps", "u") if name in launch.arguments), None)
    if launch.constants.get("P_ALIGN") == 4:  # rows of P made for it
        matrix = launch.arguments["p"]
    narrow = matrix is not None and rows_allow_wide_loads(matrix) and not compiled.loads_of_128_bits
    if narrow and not copied_in_halves(launch, matrix, triton.__version__):
        found.append("no 128-bit load although rows are aligned")
    return found


def copied_in_halves(launch: Launch, matrix: Tensor, version: str) -> bool:
    """Whether this Triton copies the matrix to shared memory 8 bytes at a time, whatever the launch asks for.

    Triton 3.6 lays float16 out for the product it is widened to, TF32, while it is still float16, and so halves the
    width of a pipelined copy. Whole sectors are read all the same. Triton 3.8 copies 16 bytes.
    """
    older = tuple(int(part) for part in version.split(".")[:2]) <= (3, 6)
    widened = matrix.dtype == torch.float16 and launch.constants.get("HALF_PRECISION") == "tf32"
    return older and widened and launch.stages > 1


def check(case: Case) -> list[dict[str, Any]]:
    """One row for each launch of a case."""
    precision, head_size, target = case
    rows = []
    for operation, launch in launches(precision, head_size, target):
        compiled = compile_for(launch, target)
        rows.append(
            {"operation": operation, "kernel": launch.kernel.__name__, "precision": precision}
            | {"head_size": head_size or "", "target": target, "warps": launch.warps, "stages": launch.stages}
            | asdict(compiled)
            | {"faults": "; ".join(faults(launch, precision, target, compiled)), "triton": triton.__version__}
        )
    return rows


def cases(targets: list[str], head_sizes: list[int], precisions: list[str]) -> list[Case]:
    """Every combination; explicit maps and the walk have no head size, and TF32 means nothing to AMD."""
    return [
        (precision, head_size, target)
        for target in targets
        for precision in precisions
        for head_size in [*head_sizes, 0]
        if precision != "tf32" or TARGETS[target].backend == "cuda"
    ]


def main() -> int:
    """Write the table; 1 where any kernel has a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--head-sizes", nargs="*", type=int, default=list(HEAD_SIZES))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    wanted = cases(options.targets, options.head_sizes, options.precisions)
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for case, found in zip(wanted, pool.map(check, wanted), strict=True):
            rows += found
            print(*case, f"{len(found)} kernels", sep="  ", flush=True)
    write_rows(options.out, rows)
    faulty = [row for row in rows if row["faults"]]
    for row in faulty:
        print(*(row[key] for key in ("operation", "precision", "head_size", "target", "faults")), sep="  ")
    print(f"{len(rows)} kernels compiled, {len(faulty)} with faults; {options.out}")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
