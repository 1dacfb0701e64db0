"""csrc/cuda/walk.cuh compiled by a C++ compiler over cuda_on_cpu.h, and run on a problem under a seeded schedule."""

from __future__ import annotations

import dataclasses
import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch
from tests.ops.problems import WalkProblem, relative_error, walk_problem
from torch import Tensor
from verification.checks import ROOT

from nerve_kernels import reference
from nerve_kernels._cuda.walk_plan import WalkPlan, WalkSizes, candidates

HERE = ROOT / "verification" / "emulation"
SOURCES = ROOT / "csrc" / "cuda"
NUMBERS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
SANITIZER = os.environ.get("EMULATION_SANITIZER", "")  # "address,undefined" or "thread"
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]  # `#pragma unroll` is nvcc's


def compiler() -> str | None:
    """g++, whose fibres ThreadSanitizer and AddressSanitizer know, or None."""
    return shutil.which("g++")


def compile_program(source: Path, program: Path, *flags: str, headers: Path = SOURCES) -> Path:
    """Compile for the CPU, under the sanitizers that `make verify` asks for."""
    command = [compiler() or "g++", "-std=c++20", "-O1", "-g1", "-pthread", *WARNINGS, *flags]
    command += [f"-fsanitize={SANITIZER}", "-fno-sanitize-recover=undefined"] if SANITIZER else []
    command += [f"-I{headers}", f"-I{HERE}", str(source), "-o", str(program)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return program


@dataclass(frozen=True)
class Case:
    """A walk and the way it is laid over the GPU."""

    grid: tuple[int, int]
    labels: int
    beta: float
    labels_per_lane: int
    tile: tuple[int, int]
    window: tuple[int, int] = (3, 3)
    cells: tuple[int, int] = (2, 2)
    batch: int = 1
    affinity_batch: int = 1
    streamed_cells: int = 0  # per chunk; 0: U is resident
    teams: int = 0  # fewer than there are parts; 0: as many
    steps: int = 3
    normalize: bool = True
    seeds_dtype: torch.dtype = torch.float32
    values_dtype: torch.dtype = torch.float32
    u_dtype: torch.dtype = torch.float32
    alpha: float = 0.8

    def problem(self) -> WalkProblem:
        """Seeded tensors in float32."""
        return walk_problem(
            3,
            self.grid,
            labels=self.labels,
            batch=self.batch,
            affinity_batch=self.affinity_batch,
            window=self.window,
            cells=self.cells,
            dtype=torch.float32,
        )

    def plan(self) -> WalkPlan:
        """The one way to lay out this case among all that the kernel knows."""
        has_local, has_global = self.beta < 1, self.beta > 0
        sizes = WalkSizes(
            self.batch,
            self.labels,
            self.grid,
            self.window if has_local else (0, 0),
            self.cells if has_global else (0, 0),
        )
        (plan,) = (
            plan
            for plan in candidates(sizes)
            if (plan.labels_per_lane, plan.tile) == (self.labels_per_lane, self.tile)
            and plan.u_resident == (self.streamed_cells == 0)
            and (plan.u_resident or plan.cells_per_chunk == self.streamed_cells)
        )
        return dataclasses.replace(plan, teams=self.teams or plan.parts)


def stored_bytes(tensor: Tensor | None) -> bytes:
    """A tensor's elements, after the number of their bytes."""
    if tensor is None:
        return struct.pack("q", 0)
    data = bytes(tensor.contiguous().view(torch.uint8).numpy().data)
    return struct.pack("q", len(data)) + data


def write_problem(case: Case, path: Path) -> tuple[Tensor, Tensor]:
    """The file that walk_on_cpu reads; returns the seeds and what they should become, by the float64 reference."""
    problem, plan = case.problem(), case.plan()
    seeds = problem.seeds.to(case.seeds_dtype)
    low_rank, local = problem.low_rank.to(case.u_dtype), problem.local.to(case.values_dtype)
    stored = WalkProblem(seeds, low_rank, local)
    expected = reference.random_walk(
        seeds, stored.dense(case.beta), alpha=case.alpha, steps=case.steps, normalize=case.normalize
    )
    has_local, has_global = case.beta < 1, case.beta > 0
    sizes = [case.batch, case.labels, *case.grid, *(case.window if has_local else (0, 0))]
    sizes += [*(case.cells if has_global else (0, 0)), case.steps, case.normalize]
    sizes += [NUMBERS[case.seeds_dtype], NUMBERS[case.values_dtype], NUMBERS[case.u_dtype]]
    sizes += [case.affinity_batch == 1, case.affinity_batch == 1]
    label_parts = plan.parts // case.batch
    sizes += [plan.labels_per_lane, label_parts, *(side.bit_length() - 1 for side in plan.tile)]
    sizes += [plan.cells_per_chunk, plan.u_resident, plan.teams, plan.shared_bytes]
    shares = [1 - case.alpha, case.alpha * (1 - case.beta), case.alpha * case.beta]
    tensors = [seeds, local.values if has_local else None, low_rank.u if has_global else None]
    path.write_bytes(
        struct.pack(f"{len(sizes)}q{len(shares)}d", *sizes, *shares) + b"".join(map(stored_bytes, tensors))
    )
    return seeds, expected


def run(program: Path, *arguments: str | Path | int) -> subprocess.CompletedProcess[str]:
    """The finished program; a deadlock in the emulator itself would be cut off."""
    command = [str(program), *map(str, arguments)]
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1 report_thread_leaks=0"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)


def walk(program: Path, case: Case, seed: int, directory: Path) -> tuple[Tensor, float]:
    """What the kernel computed in the schedule of ``seed``, and its error against the reference."""
    seeds, expected = write_problem(case, directory / "problem")
    finished = run(program, directory / "problem", directory / "result", seed)
    assert finished.returncode == 0, finished.stderr
    data = bytearray((directory / "result").read_bytes())
    result = torch.frombuffer(data, dtype=case.seeds_dtype).view(seeds.shape)
    return result, relative_error(result, expected)
