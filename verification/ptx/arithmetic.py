"""Instructions on registers: arithmetic, comparisons, conversions, and exchange between the lanes of a warp."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from verification.ptx.parser import TYPES, Instruction, PtxError, vector_of

if TYPE_CHECKING:
    from verification.ptx.machine import Mask, Program

Values = NDArray[Any]


def _quotient(a: Values, b: Values) -> Values:
    if a.dtype.kind == "f":
        return a / b
    divisor = np.where(b == 0, 1, b)
    return ((a - np.fmod(a, divisor)) // divisor).astype(a.dtype)  # towards zero


BINARY: dict[str, Callable[[Values, Values], Values]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": _quotient,
    "rem": lambda a, b: np.fmod(a, np.where(b == 0, 1, b)),
    "min": np.fmin,
    "max": np.fmax,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
UNARY: dict[str, Callable[[Values], Values]] = {
    "neg": np.negative,
    "not": np.invert,
    "abs": np.abs,
    "ex2": np.exp2,
    "lg2": np.log2,
    "rcp": np.reciprocal,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a),
}
COMPARISONS: dict[str, Callable[[Values, Values], Values]] = {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": lambda a, b: (a != b) & (a == a) & (b == b),
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "equ": lambda a, b: (a == b) | (a != a) | (b != b),
    "neu": np.not_equal,
    "num": lambda a, b: (a == a) & (b == b),
    "nan": lambda a, b: (a != a) | (b != b),
}


def binary(program: Program, instruction: Instruction, mask: Mask) -> None:
    """``op.type d, a, b``; products of integers may be wide or the high half."""
    kind = instruction.opcode[-1]
    d, *sources = instruction.operands
    a, b = (program.read(source, kind) for source in sources)
    if instruction.opcode[0] == "mul" and "wide" in instruction.opcode:
        a, b = _widen(a), _widen(b)
    elif instruction.opcode[0] == "mul" and "hi" in instruction.opcode:
        bits = 8 * a.dtype.itemsize
        program.write(d, ((_widen(a) * _widen(b)) >> bits).astype(a.dtype), mask)
        return
    program.write(d, BINARY[instruction.opcode[0]](a, b), mask)


def multiply_add(program: Program, instruction: Instruction, mask: Mask) -> None:
    """``mad`` of integers, possibly wide; ``fma`` of floats, by way of float64."""
    kind = instruction.opcode[-1]
    d, *sources = instruction.operands
    a, b = (program.read(source, kind) for source in sources[:2])
    if instruction.opcode[0] == "fma":
        c = program.read(sources[2], kind)
        program.write(d, (a.astype("f8") * b.astype("f8") + c.astype("f8")).astype(c.dtype), mask)
    elif "wide" in instruction.opcode:
        a, b = _widen(a), _widen(b)
        program.write(d, a * b + program.read(sources[2], kind[0] + str(8 * a.dtype.itemsize)), mask)
    else:
        program.write(d, a * b + program.read(sources[2], kind), mask)


def _widen(a: Values) -> Values:
    return a.astype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")


def unary(program: Program, instruction: Instruction, mask: Mask) -> None:
    """``op.type d, a``."""
    d, a = instruction.operands
    program.write(d, UNARY[instruction.opcode[0]](program.read(a, instruction.opcode[-1])), mask)


def shift(program: Program, instruction: Instruction, mask: Mask) -> None:
    """``shl`` and ``shr``; as many bits as there are, or more, leave nothing but the sign."""
    kind = instruction.opcode[-1]
    d, source, amount = instruction.operands
    a, count = program.read(source, kind), program.read(amount, "u32")
    bits = 8 * a.dtype.itemsize
    short = np.minimum(count, bits - 1).astype(a.dtype)
    if instruction.opcode[0] == "shl":
        program.write(d, np.where(count >= bits, 0, a << short).astype(a.dtype), mask)
    else:
        empty = a >> a.dtype.type(bits - 1) if a.dtype.kind == "i" else np.zeros_like(a)
        program.write(d, np.where(count >= bits, empty, a >> short), mask)


def extract_bits(program: Program, instruction: Instruction, mask: Mask) -> None:
    """``bfe.type d, a, position, length``, extended by the sign of the field where the type has one."""
    d, source, at, size = instruction.operands
    a = program.read(source, "u32").astype("i8")
    position, length = (program.read(item, "u32").astype("i8") & 0xFF for item in (at, size))
    field = (a >> np.minimum(position, 32)) & ((1 << np.minimum(length, 32)) - 1)
    if instruction.opcode[-1] == "s32":
        sign = (field >> np.maximum(length - 1, 0)) & 1
        field = np.where(sign == 1, field - (1 << np.minimum(length, 32)), field)
    program.write(d, field.astype("i4"), mask)


def permute(program: Program, instruction: Instruction, mask: Mask) -> None:
    """``prmt.b32 d, a, b, selectors``: four of the eight bytes of a and b, or the sign of one in all its bits."""
    d, *sources = instruction.operands
    a, b, selectors = (program.read(source.rstrip("U"), "b32").astype(np.uint64) for source in sources)
    both, value = a | (b << np.uint64(32)), np.zeros(program.threads, np.uint64)
    for position in range(4):
        selector = (selectors >> np.uint64(4 * position)) & np.uint64(15)
        byte = (both >> (np.uint64(8) * (selector & np.uint64(7)))) & np.uint64(255)
        sign = np.where(byte >= 128, np.uint64(255), np.uint64(0))
        value |= np.where(selector >= 8, sign, byte) << np.uint64(8 * position)
    program.write(d, value.astype(np.uint32), mask)


def compare(program: Program, instruction: Instruction, mask: Mask) -> None:
    """``setp.comparison.type p, a, b``."""
    kind = instruction.opcode[-1]
    d, a, b = instruction.operands
    program.write(d, COMPARISONS[instruction.opcode[1]](program.read(a, kind), program.read(b, kind)), mask)


def select(program: Program, instruction: Instruction, mask: Mask) -> None:
    """``selp.type d, a, b, p``."""
    kind = instruction.opcode[-1]
    d, a, b, condition = instruction.operands
    chosen = np.where(program.read(condition, "pred"), program.read(a, kind), program.read(b, kind))
    program.write(d, chosen, mask)


def move(program: Program, instruction: Instruction, mask: Mask) -> None:
    """``mov``, which also packs ``{a, b}`` into one register and takes it apart; ``cvta`` changes nothing here."""
    kind = instruction.opcode[-1]
    d, source = instruction.operands
    if source.startswith("{"):
        parts = vector_of(source)
        width = 8 * TYPES[kind].itemsize // len(parts)
        packed = np.stack([program.read(part, f"b{width}") for part in parts], 1)
        program.write(d, packed.view(TYPES[kind]).reshape(-1), mask)
    elif d.startswith("{"):
        parts = vector_of(d)
        width = TYPES[kind].itemsize // len(parts)
        pieces = program.read(source, kind).copy().view(f"u{width}").reshape(-1, len(parts))
        for position, part in enumerate(parts):
            program.write(part, pieces[:, position].copy(), mask)
    else:
        program.write(d, program.read(source, kind), mask)


def to_bfloat16(a: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of bfloat16, rounded to nearest, ties to even; NaN stays NaN."""
    bits = a.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)
    return np.where(np.isnan(a), np.uint16(0x7FFF), rounded)


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """float32 of the bits of bfloat16."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def convert(program: Program, instruction: Instruction, mask: Mask) -> None:
    """``cvt.to.from d, a``; pairs ``bf16x2`` and ``f16x2`` take their upper half first."""
    target, source = instruction.opcode[-2:]
    d, *operands = instruction.operands
    values = [program.read(operand, source) for operand in operands]
    if source == "bf16":
        values = [from_bfloat16(value) for value in values]
    if target in ("bf16x2", "f16x2"):
        high, low = (to_bfloat16(value) if target == "bf16x2" else value.astype("f2").view("u2") for value in values)
        program.write(d, low.astype("u4") | (high.astype("u4") << np.uint32(16)), mask)
    elif target == "tf32":  # to the nearest, ties away from zero
        rounded = (values[0].view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
        program.write(d, np.where(np.isfinite(values[0]), rounded, values[0].view(np.uint32)), mask)
    elif target == "bf16":
        program.write(d, to_bfloat16(values[0].astype("f4")), mask)
    else:
        rounding = {"rni": np.rint, "rmi": np.floor, "rpi": np.ceil, "rzi": np.trunc}
        (value,) = values
        for mode in instruction.opcode[1:-2]:
            value = rounding[mode](value) if mode in rounding else value
        program.write(d, value.astype(TYPES[target]), mask)


def exchange(program: Program, instruction: Instruction, mask: Mask) -> None:
    """``shfl.sync.mode.b32 d, a, b, c, members``; all members have to take part."""
    d, source, amount, _, members = instruction.operands
    a, b = program.read(source, "b32"), program.read(amount, "u32").astype(np.int64)
    wanted = program.read(members, "u32")
    active = (mask.reshape(-1, 32) * (1 << np.arange(32, dtype=np.int64))).sum(1)
    if (mask & ((wanted.astype(np.int64) & ~np.repeat(active, 32)) != 0)).any():
        raise PtxError(f"line {instruction.line}: shfl.sync waits for lanes that are elsewhere")
    lane = program.thread % 32
    chosen = {"bfly": lane ^ b, "idx": b, "up": lane - b, "down": lane + b}[instruction.opcode[2]]
    chosen = np.where((chosen < 0) | (chosen > 31), lane, chosen)
    program.write(d.split("|")[0], a[program.thread // 32 * 32 + chosen], mask)


HANDLERS = {
    **dict.fromkeys(BINARY, binary),
    **dict.fromkeys(UNARY, unary),
    **dict.fromkeys(("mad", "fma"), multiply_add),
    **dict.fromkeys(("shl", "shr"), shift),
    **dict.fromkeys(("mov", "cvta"), move),
    "bfe": extract_bits,
    "prmt": permute,
    "setp": compare,
    "selp": select,
    "cvt": convert,
    "shfl": exchange,
}
