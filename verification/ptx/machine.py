"""Runs a kernel: one program after the other, all threads of one at once; where they diverge, the lowest line first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from verification.ptx import arithmetic, tensor_cores, transfers
from verification.ptx.memory import Addresses, Fault, GlobalMemory, SharedMemory
from verification.ptx.parser import TYPES, Instruction, Kernel, PtxError

MAX_STEPS = 5_000_000  # of one program: it does not end
Mask = NDArray[np.bool_]


@dataclass
class Report:
    """What a launch did."""

    faults: list[Fault] = field(default_factory=list)
    warp_instructions: Counter[str] = field(default_factory=Counter)


@dataclass
class Program:
    """The state of one program (CTA): registers, shared memory, copies under way."""

    kernel: Kernel
    threads: int
    index: int
    programs: int
    parameters: bytes
    memory: GlobalMemory
    shared: SharedMemory
    registers: dict[str, NDArray[Any]] = field(default_factory=dict)
    copies: list[transfers.Copy] = field(default_factory=list)
    groups: list[list[transfers.Copy]] = field(default_factory=list)

    def __post_init__(self) -> None:
        thread = np.arange(self.threads, dtype=np.uint32)
        self.thread = thread.astype(np.intp)
        same = np.zeros_like(thread)
        self.special = {
            "%tid.x": thread, "%tid.y": same, "%tid.z": same, "%laneid": thread % 32, "%ntid.x": same + self.threads,
            "%ctaid.x": same + self.index, "%ctaid.y": same, "%ctaid.z": same, "%nctaid.x": same + self.programs,
        }  # fmt: skip

    def read(self, operand: str, kind: str) -> NDArray[Any]:
        """A register, special register, variable or constant as a type: bits, cut or extended by zeros."""
        value = self._bits(operand)
        dtype = TYPES[kind]
        if value.dtype == np.bool_ or value.dtype == dtype:
            return value
        unsigned = value if value.dtype.kind == "u" else value.view(f"u{value.dtype.itemsize}")
        return unsigned.astype(f"u{dtype.itemsize}").view(dtype)

    def _bits(self, operand: str) -> NDArray[Any]:
        if operand in self.registers:
            return self.registers[operand]
        if operand in self.special:
            return self.special[operand]
        if operand in self.kernel.shared_offsets:
            return np.full(self.threads, self.kernel.shared_offsets[operand], np.uint64)
        if operand.startswith("%"):
            raise PtxError(f"{operand} is read before it is written")
        if operand[:2] in ("0f", "0F"):
            return np.full(self.threads, int(operand[2:], 16), np.uint32)
        return np.full(self.threads, int(operand, 0) & 0xFFFFFFFFFFFFFFFF, np.uint64)

    def write(self, register: str, value: NDArray[Any], mask: Mask) -> None:
        """Set a register for the threads of a mask."""
        bits = value if value.dtype == np.bool_ else value.view(f"u{value.dtype.itemsize}")
        before = self.registers.get(register)
        if before is None or before.dtype != bits.dtype:
            before = np.zeros(self.threads, bits.dtype)
        self.registers[register] = np.where(mask, bits, before)

    def address(self, operand: str) -> Addresses:
        """``[register + offset]``."""
        match = re.fullmatch(r"\[\s*([^+\s\]]+)\s*(?:\+\s*(-?\w+)\s*)?\]", operand)
        if match is None:
            raise PtxError(f"not an address: {operand}")
        offset = np.uint64(int(match[2] or "0", 0) & 0xFFFFFFFFFFFFFFFF)
        return self.read(match[1], "u64") + offset


Handler = Callable[[Program, Instruction, Mask], None]
HANDLERS: dict[str, Handler] = arithmetic.HANDLERS | transfers.HANDLERS | tensor_cores.HANDLERS


def launch(
    kernel: Kernel,
    arguments: Sequence[int | float],
    memory: GlobalMemory,
    *,
    programs: int,
    threads: int,
    shared_bytes: int,
    only: Iterable[int] | None = None,
) -> Report:
    """Run ``programs`` programs, or ``only`` some; tensors among the arguments are addresses in ``memory``."""
    report = Report(memory.faults)
    packed = _pack(kernel, arguments)
    for index in range(programs) if only is None else only:
        memory.begin_program(index)
        shared = SharedMemory(kernel.shared_bytes + shared_bytes, memory.faults)
        _run(Program(kernel, threads, index, programs, packed, memory, shared), report)
    return report


def _pack(kernel: Kernel, arguments: Sequence[int | float]) -> bytes:
    last = list(kernel.parameters.values())[-1]
    packed = np.zeros(last.offset + 8, np.uint8)
    values = [
        *arguments,
        *(0,) * (len(kernel.parameters) - len(arguments)),
    ]  # Triton adds scratch pointers, unused here
    for parameter, value in zip(kernel.parameters.values(), values, strict=True):
        dtype = TYPES[parameter.type]
        wrapped = value if dtype.kind == "f" else int(value) & ((1 << 8 * dtype.itemsize) - 1)
        packed[parameter.offset :][: dtype.itemsize] = np.array([wrapped], dtype).view(np.uint8)
    return packed.tobytes()


def _run(program: Program, report: Report) -> None:
    """Until all threads have returned: those of the lowest line run together, those at a barrier wait for all."""
    instructions, labels = program.kernel.instructions, program.kernel.labels
    line = np.zeros(program.threads, np.int64)
    live, waiting = np.ones(program.threads, bool), np.zeros(program.threads, bool)
    for _ in range(MAX_STEPS):
        running = live & ~waiting
        if not running.any():
            if not live.any():
                return
            waiting[:] = False
            program.shared.barrier()
            continue
        current = int(line[running].min())
        here = running & (line == current)
        if current == len(instructions):
            live &= ~here
            continue
        instruction = instructions[current]
        mask = here
        if instruction.guard is not None:
            mask = here & (program.registers[instruction.guard] ^ instruction.negated)
        report.warp_instructions[".".join(instruction.opcode)] += int(mask.reshape(-1, 32).any(1).sum())
        line[here] = current + 1
        name = instruction.opcode[0]
        if name == "bra":
            line[mask] = labels[instruction.operands[0]]
        elif name in ("ret", "exit"):
            live &= ~mask
        elif name in ("bar", "barrier"):
            waiting |= mask
        elif mask.any():
            if name not in HANDLERS:
                raise PtxError(f"line {instruction.line}: unknown instruction {instruction.text}")
            with np.errstate(all="ignore"):
                HANDLERS[name](program, instruction, mask)
    raise PtxError(f"program {program.index} does not end")
