"""``mma.sync``: D = A B + C of one warp, with fragments laid out over its lanes as the PTX manual says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from verification.ptx.arithmetic import from_bfloat16
from verification.ptx.parser import Instruction, PtxError, vector_of

if TYPE_CHECKING:
    from verification.ptx.machine import Mask, Program

LANE = np.arange(32)
GROUP, MEMBER = LANE // 4, LANE % 4
Matrices = NDArray[np.float32]


def multiply(program: Program, instruction: Instruction, mask: Mask) -> None:
    """Shapes m16n8k16 of float16 or bfloat16 and m16n8k8 of TF32; sums are cut to float32, towards zero, as GPUs do."""
    shape, kinds = instruction.opcode[3], instruction.opcode[6:]
    if instruction.opcode[4:6] != ("row", "col") or (kinds[0], kinds[-1]) != ("f32", "f32"):
        raise PtxError(f"line {instruction.line}: unknown instruction {instruction.text}")
    d, a, b, c = (vector_of(operand) for operand in instruction.operands)
    warps = np.nonzero(mask.reshape(-1, 32).all(1))[0]
    if (shape, kinds[1]) in (("m16n8k16", "f16"), ("m16n8k16", "bf16")):
        left, right = _of_two_bytes(program, a, b, kinds[1])
    elif (shape, kinds[1]) == ("m16n8k8", "tf32"):
        left, right = _of_tf32(program, a, b)
    else:
        raise PtxError(f"line {instruction.line}: unknown instruction {instruction.text}")
    sums = np.zeros((program.threads // 32, 16, 8), np.float32)
    for register, name in enumerate(c):
        rows, columns = GROUP + 8 * (register // 2), MEMBER * 2 + register % 2
        sums[:, rows, columns] = program.read(name, "f32").reshape(-1, 32)
    exact = sums[warps] + left[warps].astype(np.float64) @ right[warps].astype(np.float64)
    sums[warps] = towards_zero(exact)
    for register, name in enumerate(d):
        rows, columns = GROUP + 8 * (register // 2), MEMBER * 2 + register % 2
        program.write(name, sums[:, rows, columns].reshape(-1), mask)


def towards_zero(exact: NDArray[np.float64]) -> Matrices:
    """float32 of the upper bits, the others cut off."""
    nearest = exact.astype(np.float32)
    return np.where(np.abs(nearest) > np.abs(exact), np.nextafter(nearest, np.float32(0)), nearest)


def _of_two_bytes(program: Program, a: tuple[str, ...], b: tuple[str, ...], kind: str) -> tuple[Matrices, Matrices]:
    def halves(register: str) -> Matrices:
        bits = program.read(register, "b32").copy().view(np.uint16)
        values = from_bfloat16(bits) if kind == "bf16" else bits.view(np.float16).astype(np.float32)
        return values.reshape(-1, 32, 2)

    warps = program.threads // 32
    left, right = np.zeros((warps, 16, 16), np.float32), np.zeros((warps, 16, 8), np.float32)
    for half in range(2):
        for register, name in enumerate(a):
            left[:, GROUP + 8 * (register % 2), MEMBER * 2 + half + 8 * (register // 2)] = halves(name)[:, :, half]
        for register, name in enumerate(b):
            right[:, MEMBER * 2 + half + 8 * register, GROUP] = halves(name)[:, :, half]
    return left, right


def _of_tf32(program: Program, a: tuple[str, ...], b: tuple[str, ...]) -> tuple[Matrices, Matrices]:
    def shortened(register: str) -> Matrices:
        bits = program.read(register, "b32") & np.uint32(0xFFFFE000)  # the 13 low bits are not looked at
        return bits.view(np.float32).reshape(-1, 32)

    warps = program.threads // 32
    left, right = np.zeros((warps, 16, 8), np.float32), np.zeros((warps, 8, 8), np.float32)
    for register, name in enumerate(a):
        left[:, GROUP + 8 * (register % 2), MEMBER + 4 * (register // 2)] = shortened(name)
    for register, name in enumerate(b):
        right[:, MEMBER + 4 * register, GROUP] = shortened(name)
    return left, right


HANDLERS = {"mma": multiply}
