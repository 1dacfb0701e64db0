"""Counts the instructions of a compiled kernel, loop by loop, out of the machine code of an NVIDIA GPU.

A program's warp instructions are those outside of loops, and those of each loop times how often it is gone through.
``python -m verification.instruction_counts`` prints them for a step of the walk on a packed affinity, on a stencil over
pixels, and on a graph.
"""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import triton
from triton.compiler import ASTSource
from verification.attention_launches import PRECISIONS
from verification.inspection import NVIDIA_TOOLS, TARGETS, specialised
from verification.sparse_launches import SIZES as SPARSE_SIZES
from verification.sparse_launches import GraphSize, StencilSize, sparse_launches
from verification.walk_launches import SIZES, packed_launches

from nerve_kernels._triton.launch import Launch

# four schedulers a multiprocessor, one warp instruction a cycle each: an H100
SCHEDULERS, CLOCK_GHZ = 4 * 132, 1.755


@dataclass
class Loop:
    """Instructions between a label and a branch back to it, without those of the loops inside."""

    opcodes: Counter[str] = field(default_factory=Counter)
    loops: list[Loop] = field(default_factory=list)

    def count(self, trips: Sequence[float]) -> float:
        """Instructions of one warp; ``trips`` are those of all loops, in the order of their labels."""
        total, _ = self._count(list(trips))
        return total

    def _count(self, trips: list[float]) -> tuple[float, list[float]]:
        total: float = self.opcodes.total()
        for loop in self.loops:
            if not trips:
                raise ValueError(f"trips: expected a number for each of the loops, found {self.shape()}")
            times, *trips = trips
            inside, trips = loop._count(trips)
            total += times * inside
        return total, trips

    def shape(self) -> list[int]:
        """Instructions of each loop, in the order of their labels."""
        return [size for loop in self.loops for size in (loop.opcodes.total(), *loop.shape())]


def loops_of(sass: str) -> Loop:
    """The loops of one kernel, as ``nvdisasm -c`` prints it."""
    labels: dict[str, int] = {}
    instructions: list[tuple[str, str | None]] = []
    for line in sass.splitlines():
        if match := re.match(r"\s*(\.L_x?_?\w+):", line):
            labels[match[1]] = len(instructions)
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*);", line):
            target = re.search(r"`\((\.L_\w+)\)", match[2]) if match[1].startswith("BRA") else None
            instructions.append((match[1].split(".")[0], target[1] if target else None))
    # the kernel ends with a branch to itself, for ever
    backward: dict[int, int] = {}
    for at, (_, label) in enumerate(instructions):
        if label is not None and labels[label] < at:
            backward[labels[label]] = max(at, backward.get(labels[label], 0))
    whole = Loop()
    opened: list[tuple[int, Loop]] = [(len(instructions), whole)]
    for at, (opcode, label) in enumerate(instructions):
        if label is not None and labels[label] == at:
            break
        if at in backward:
            loop = Loop()
            opened[-1][1].loops.append(loop)
            opened.append((backward[at], loop))
        opened[-1][1].opcodes[opcode] += 1
        while opened[-1][0] == at:
            opened.pop()
    return whole


def issue_microseconds(warp_instructions: float) -> float:
    """The least time in which an H100 can issue so many."""
    return warp_instructions / (SCHEDULERS * CLOCK_GHZ * 1e3)


def machine_code(launch: Launch) -> str:
    """SASS of sm_90a."""
    signature, constants, attributes = specialised(launch)
    source = ASTSource(launch.kernel, signature, constexprs=constants, attrs=attributes)
    kernel = triton.compile(source, target=TARGETS["sm_90"], options=launch.options())
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(NVIDIA_TOOLS / "nvdisasm"), "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def sparse_trips(size: StencilSize | GraphSize, launch: Launch) -> list[float]:
    """Of the loops of a step on a stencil, the mean over its tiles, or of one on a graph with rows of one length."""
    if isinstance(size, GraphSize):
        return [math.ceil(size.entries / launch.constants["ENTRIES"])]
    rows, columns = launch.constants["TILE_ROWS"], launch.constants["TILE_COLUMNS"]
    tiles = [(top, left) for top in range(0, size.grid[0], rows) for left in range(0, size.grid[1], columns)]

    def is_inner(top: int, left: int, dilation: int) -> bool:
        y, x = (dilation * (side // 2) for side in size.window)
        return y <= top and top + rows + y <= size.grid[0] and x <= left and left + columns + x <= size.grid[1]

    inner = sum(is_inner(*tile, dilation) for tile in tiles for dilation in size.dilations)
    share, places = inner / (len(tiles) * len(size.dilations)), launch.arguments["places"]
    unrolled, rest = divmod(places, launch.constants["UNROLL"])
    dilations = [len(size.dilations)] if len(size.dilations) > 1 else []  # one is no loop
    return [*dilations, share * unrolled, share * rest, (1 - share) * places]


def main() -> None:
    """Print the table."""
    print(f"Triton {triton.__version__}; a step: million warp instructions, microseconds to issue 20 steps, spills")
    for precision in ("fp32", "bf16"):
        for mark, size in list(SIZES.items())[:3]:
            launch = packed_launches(size, PRECISIONS[precision][0])["step"]
            code = machine_code(launch)
            loop = loops_of(code)
            # a loop of few blocks may be unrolled
            trips = [launch.arguments["blocks"]] * len(loop.shape())
            count = loop.count(trips) * launch.warps * launch.programs
            spills = len(re.findall(r"\b(?:LDL|STL)\b", code))
            print(f"{precision}{mark:28} {count / 1e6:7.2f} {20 * issue_microseconds(count):7.1f} {spills}")
        launches = sparse_launches(PRECISIONS[precision][0])
        for name, size in SPARSE_SIZES.items():
            (launch,) = launches[f"random_walk, {name}"]
            code = machine_code(launch)
            count = loops_of(code).count(sparse_trips(size, launch)) * launch.warps * launch.programs
            spills = len(re.findall(r"\b(?:LDL|STL)\b", code))
            print(f"{precision} {name:42} {count / 1e6:7.2f} {20 * issue_microseconds(count):7.1f} {spills}")


if __name__ == "__main__":
    main()
