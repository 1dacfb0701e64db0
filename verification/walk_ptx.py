"""What the compiled step of the walk does, run on the CPU: ``python -m verification.walk_ptx``.

Compiles the step for sm_80, interprets every program of it, checks P and T against float64, and writes what it read and
wrote to ``benchmarks/results/walk_ptx.csv``. Fails on a race, an access out of bounds, a wrong result, an atomic, or
where more sectors of 32 bytes are touched than 1.05 times those of U, window values, P, G, T and the results.
"""

from __future__ import annotations

import argparse
import math
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from benchmarks.peers.torch_walk import float32_products
from benchmarks.tables import write_rows
from torch import Tensor
from triton.compiler import ASTSource
from verification.attention_launches import PRECISIONS
from verification.checks import ROOT
from verification.inspection import TARGETS
from verification.ptx.machine import Report, launch
from verification.ptx.memory import SECTOR, GlobalMemory, Traffic
from verification.ptx.parser import parse

from nerve_kernels import reference
from nerve_kernels._arguments import AffinityArguments
from nerve_kernels._triton.compilation import specialised
from nerve_kernels._triton.launch import Launch
from nerve_kernels._triton.walk.random_walk import WalkOperator

RESULTS = ROOT / "benchmarks" / "results" / "walk_ptx.csv"
MAX_SECTORS_RATIO = 1.05  # times the minimum
# of one step: float32 sums of some hundred terms; bfloat16 weights keep 16 bits of P; TF32 keeps 10 of both
TOLERANCE = {"fp32": 1e-6, "fp16": 1e-6, "bf16": 1e-5, "tf32": 1e-3}
BETA, ALPHA = 0.5, 0.8
TENSORS = ("u", "values", "p", "seeds", "pooled", "out", "pooled_out")


@dataclass(frozen=True)
class StepCase:
    """One step: its sizes and how weights are stored and multiplied."""

    precision: str
    grid: tuple[int, int] = (32, 32)
    window: tuple[int, int] = (7, 7)
    cells: tuple[int, int] = (8, 8)
    labels: int = 21
    last: bool = False

    def planned(self) -> tuple[Launch, Tensor, Tensor]:
        """The launch on tensors of its own, and what P and T should be, in float64."""
        dtype, products = PRECISIONS[self.precision]
        generator = torch.Generator().manual_seed(0)
        tokens = math.prod(self.grid)

        def stochastic(columns: int, kind: torch.dtype) -> Tensor:
            return torch.rand(1, tokens, columns, generator=generator).softmax(-1).to(kind)

        values, u = stochastic(math.prod(self.window), dtype), stochastic(math.prod(self.cells), dtype)
        p, seeds = (stochastic(self.labels, torch.float32) for _ in range(2))
        sizes = {"grid": list(self.grid), "window": list(self.window), "cells": list(self.cells), "beta": BETA}
        average = reference.cell_average(self.grid, self.cells).transpose(0, 1)
        pooled = (average @ p.double()).float()
        local_part = reference.window_to_dense(values, grid=self.grid, window=self.window)
        expected = (1 - ALPHA) * seeds + ALPHA * (
            BETA * u.double() @ pooled.double() + (1 - BETA) * local_part @ p.double()
        )
        if self.last:
            expected = expected / expected.sum(-1, keepdim=True)
        with float32_products(products):
            operator = WalkOperator(AffinityArguments(values, u, **sizes), ALPHA, seeds)
            out, pooled_out = (torch.full_like(item, math.nan) for item in (p, pooled))
            after = None if self.last or not operator.pools_itself else pooled_out
            planned = operator.step.plan(p, pooled, seeds, out, after, normalize=self.last)
        return planned, expected, average @ expected


# an image's step, with rows that are no multiple of 16 bytes and with some that are; the last step; uneven cells; few
# labels and many
CASES = {
    "fp32": StepCase("fp32"),
    "fp32, 32 labels": StepCase("fp32", labels=32),
    "fp32, last step": StepCase("fp32", last=True),
    "fp32, 37 × 29, 70 labels": StepCase("fp32", grid=(37, 29), window=(5, 9), cells=(7, 5), labels=70),
    "tf32": StepCase("tf32"),
    "bf16": StepCase("bf16"),
    "fp16": StepCase("fp16"),
    "fp32, 64 × 64": StepCase("fp32", grid=(64, 64), cells=(16, 16)),
}


@dataclass(frozen=True)
class Compiled:
    """A launch as PTX."""

    text: str
    name: str
    shared_bytes: int
    threads: int


def compile_ptx(planned: Launch) -> Compiled:
    """For sm_80, whose instructions the interpreter knows."""
    signature, constants, attributes = specialised(planned)
    source = ASTSource(planned.kernel, signature, constexprs=constants, attrs=attributes)
    kernel = triton.compile(source, target=TARGETS["sm_80"], options=planned.options())
    metadata = kernel.metadata
    return Compiled(kernel.asm["ptx"], metadata.name, metadata.shared, 32 * metadata.num_warps)


def interpret(planned: Launch, compiled: Compiled) -> tuple[Report, GlobalMemory]:
    """Run all programs on the tensors of the launch."""
    _, constants, _ = specialised(planned)
    memory, arguments, addresses = GlobalMemory(), [], {}
    for name in planned.kernel.arg_names:
        if name in constants:
            continue
        value = planned.arguments[name]
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            if storage.data_ptr() not in addresses:
                data = torch.tensor([], dtype=torch.uint8).set_(storage)
                addresses[storage.data_ptr()] = memory.add(name, data.numpy())
            value = addresses[storage.data_ptr()] + value.storage_offset() * value.element_size()
        arguments.append(value)
    report = launch(
        parse(compiled.text, compiled.name),
        arguments,
        memory,
        programs=planned.programs,
        threads=compiled.threads,
        shared_bytes=compiled.shared_bytes,
    )
    return report, memory


def relative_error(result: Tensor, expected: Tensor) -> float:
    """‖result − expected‖ / ‖expected‖."""
    return float((result.double() - expected).norm() / expected.norm())


def check(name: str) -> list[dict[str, Any]]:
    """A row for each tensor of a case, and one for the launch."""
    case = CASES[name]
    planned, expected, expected_pooled = case.planned()
    report, memory = interpret(planned, compile_ptx(planned))
    error = relative_error(planned.arguments["out"], expected)
    if planned.constants["POOL"]:
        error = max(error, relative_error(planned.arguments["pooled_out"], expected_pooled))
    total, least, rows = Traffic(), 0, []
    for tensor in memory.tensors:
        minimum = -(-tensor.data.size // SECTOR)
        least += minimum
        rows.append({"case": name, "tensor": tensor.name, **_figures(tensor.traffic, minimum)})
        for figure, value in vars(tensor.traffic).items():
            setattr(total, figure, getattr(total, figure) + value)
    counted = report.warp_instructions
    atomics = sum(count for opcode, count in counted.items() if opcode.startswith(("atom", "red")))
    kinds = [fault.kind for fault in report.faults]
    launched = {
        "programs": planned.programs,
        "warp_instructions": counted.total(),
        "tensor_core_instructions": sum(count for opcode, count in counted.items() if opcode.startswith("mma")),
        "races": kinds.count("race"),
        "out_of_bounds": len(kinds) - kinds.count("race"),
        "atomics": atomics,
        "error": f"{error:.2g}",
    }
    faults = [f"{fault.kind} of {fault.where}, line {fault.line}: {fault.text}" for fault in report.faults[:1]]
    if not error <= TOLERANCE[case.precision]:
        faults.append(f"error {error:.2g}")
    if atomics:
        faults.append(f"{atomics} atomics")
    if total.sectors > MAX_SECTORS_RATIO * least:
        faults.append(f"{total.sectors / least:.2f} times the least sectors")
    figures = _figures(total, least)
    return [*rows, {"case": name, "tensor": "all", **figures, **launched, "faults": "; ".join(faults)}]


def _figures(traffic: Traffic, minimum: int) -> dict[str, Any]:
    return {
        "minimum_sectors": minimum,
        "sectors": traffic.sectors,
        "sectors_ratio": f"{traffic.sectors / minimum:.3f}",
        "program_sectors": traffic.program_sectors,
        "warp_sectors": traffic.warp_sectors,
        "issued_bytes": traffic.bytes,
        "issued_ratio": f"{traffic.bytes / (SECTOR * minimum):.2f}",
    }


def main() -> int:
    """Write the table; 1 where any case has a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--jobs", type=int, default=1, help="processes that interpret")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with ProcessPoolExecutor(options.jobs) as pool:
        rows = [row for found in pool.map(check, options.cases) for row in found]
    write_rows(options.out, rows)
    launches = [row for row in rows if row["tensor"] == "all"]
    for row in launches:
        print(
            f"{row['case']:28} sectors {row['sectors_ratio']} of the least, issued bytes {row['issued_ratio']},",
            end=" ",
        )
        print(f"error {row['error']}, {row['races']} races, {row['out_of_bounds']} out of bounds  {row['faults']}")
    print(f"{len(launches)} launches interpreted; {options.out}")
    return 1 if any(row["faults"] for row in launches) else 0


if __name__ == "__main__":
    sys.exit(main())
