"""Instructions that move data: loads, stores, asynchronous copies, and matrices out of shared memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from verification.ptx.memory import Addresses, Bytes, GlobalMemory, SharedMemory
from verification.ptx.parser import TYPES, Instruction, PtxError, vector_of

if TYPE_CHECKING:
    from verification.ptx.machine import Mask, Program


@dataclass(frozen=True)
class Copy:
    """A copy to shared memory that has not arrived: where, what, and whose."""

    addresses: Addresses
    data: Bytes
    threads: NDArray[np.intp]


def _space(program: Program, instruction: Instruction) -> GlobalMemory | SharedMemory:
    spaces = [part.split("::")[0] for part in instruction.opcode]
    return program.shared if "shared" in spaces else program.memory


def load(program: Program, instruction: Instruction, mask: Mask) -> None:
    """``ld.space.type d, [a]``, d a register or several."""
    kind = instruction.opcode[-1]
    d, source = instruction.operands
    dtype, registers = TYPES[kind], vector_of(d)
    if instruction.opcode[1] == "param":
        offset = program.kernel.parameters[source.strip("[] ")].offset
        value = np.frombuffer(program.parameters, dtype, 1, offset)
        program.write(d, np.repeat(value, program.threads), mask)
        return
    threads = np.nonzero(mask)[0]
    addresses = program.address(source)[threads]
    size = dtype.itemsize * len(registers)
    data = _space(program, instruction).load(addresses, size, threads, instruction.line, instruction.text)
    values: NDArray[Any] = np.ascontiguousarray(data).view(dtype)
    for position, register in enumerate(registers):
        full = np.zeros(program.threads, dtype)
        full[threads] = values[:, position]
        program.write(register, full, mask)


def store(program: Program, instruction: Instruction, mask: Mask) -> None:
    """``st.space.type [a], s``."""
    kind = instruction.opcode[-1]
    target, source = instruction.operands
    threads = np.nonzero(mask)[0]
    values = np.stack([program.read(register, kind)[threads] for register in vector_of(source)], 1)
    data = np.ascontiguousarray(values).view(np.uint8).reshape(len(threads), -1)
    space = _space(program, instruction)
    space.store(program.address(target)[threads], data, threads, instruction.line, instruction.text)


def copy_asynchronously(program: Program, instruction: Instruction, mask: Mask) -> None:
    """``cp.async`` and its groups: what is copied is NaN in shared memory until its group is waited for."""
    action = instruction.opcode[2]
    if action == "commit_group":
        program.groups.append(program.copies)
        program.copies = []
    elif action in ("wait_group", "wait_all"):
        pending = int(instruction.operands[0]) if instruction.operands else 0
        while len(program.groups) > pending:
            for copy in program.groups.pop(0):
                program.shared.store(copy.addresses, copy.data, copy.threads, instruction.line, instruction.text)
    elif action in ("ca", "cg"):
        _begin_copy(program, instruction, mask)
    else:
        raise PtxError(f"line {instruction.line}: unknown instruction {instruction.text}")


def _begin_copy(program: Program, instruction: Instruction, mask: Mask) -> None:
    """``cp.async [target], [source], size, read``: what is not read arrives as zeros."""
    target, source, size_text, *rest = instruction.operands
    threads, size = np.nonzero(mask)[0], int(size_text, 0)
    read = program.read(rest[0], "u32")[threads] if rest else np.full(len(threads), size, np.uint32)
    if ((read != 0) & (read != size)).any():
        raise PtxError(f"line {instruction.line}: a copy of a part is not modelled: {instruction.text}")
    data = np.zeros((len(threads), size), np.uint8)
    reading = np.nonzero(read)[0]
    place = instruction.line, instruction.text
    data[reading] = program.memory.load(program.address(source)[threads][reading], size, threads[reading], *place)
    addresses = program.address(target)[threads]
    program.shared.store(addresses, np.full_like(data, 0xFF), threads, *place)
    program.copies.append(Copy(addresses, data, threads))


def load_matrices(program: Program, instruction: Instruction, mask: Mask) -> None:
    """``ldmatrix.xN``: N matrices of 8 × 8 elements of 2 bytes; lanes 8i … 8i + 7 give the rows of matrix i."""
    d, source = instruction.operands
    registers, addresses = vector_of(d), program.address(source)
    warps = np.nonzero(mask.reshape(-1, 32).all(1))[0]
    for position, register in enumerate(registers):
        threads = (warps[:, None] * 32 + position * 8 + np.arange(8)).reshape(-1)
        data = program.shared.load(addresses[threads], 16, threads, instruction.line, instruction.text)
        matrices = np.ascontiguousarray(data).view(np.uint16).reshape(-1, 8, 8)
        if "trans" in instruction.opcode:
            matrices = matrices.transpose(0, 2, 1)
        full = np.zeros((program.threads // 32, 32), np.uint32)
        full[warps] = np.ascontiguousarray(matrices).view(np.uint32).reshape(-1, 32)
        program.write(register, full.reshape(-1), mask)


HANDLERS = {"ld": load, "st": store, "cp": copy_asynchronously, "ldmatrix": load_matrices}
