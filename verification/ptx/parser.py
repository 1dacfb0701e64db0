"""Reads one kernel out of PTX text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# how each type lies in a register; bfloat16 and TF32 have no type in numpy and are bits
TYPES = {
    name: np.dtype(kind)
    for name, kind in {
        "pred": "?", "b8": "u1", "u8": "u1", "s8": "i1", "b16": "u2", "u16": "u2", "s16": "i2", "f16": "f2",
        "bf16": "u2", "b32": "u4", "u32": "u4", "s32": "i4", "f32": "f4", "b64": "u8", "u64": "u8", "s64": "i8",
        "f64": "f8",
    }.items()
}  # fmt: skip
_DIRECTIVES = (".reg", ".pragma", ".shared", ".local", ".b8")


class PtxError(Exception):
    """What the interpreter cannot read or does not know."""


@dataclass(frozen=True)
class Instruction:
    """``@guard opcode operands``; the opcode is split at its dots."""

    guard: str | None
    negated: bool
    opcode: tuple[str, ...]
    operands: tuple[str, ...]
    line: int
    text: str


@dataclass(frozen=True)
class Parameter:
    """Where a parameter lies among the kernel's parameters."""

    type: str
    offset: int


@dataclass(frozen=True)
class Kernel:
    """A kernel's instructions, with labels as indices into them."""

    parameters: dict[str, Parameter]
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    shared_offsets: dict[str, int]
    shared_bytes: int  # static only; what is asked for at the launch comes after it


def parse(text: str, name: str) -> Kernel:
    """The kernel ``name`` of a PTX module."""
    header = re.search(rf"\.entry\s+{re.escape(name)}\s*\((.*?)\)(.*?)\{{", text, re.DOTALL)
    if header is None:
        raise PtxError(f"no kernel {name}")
    first_line = text.count("\n", 0, header.end()) + 1
    offsets, shared_bytes = _shared_variables(text)
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for statement, line in _statements(text[header.end() :], first_line):
        rest = statement
        while match := re.match(r"([$\w]+):\s*", rest):
            labels[match[1]] = len(instructions)
            rest = rest[match.end() :]
        if rest and not rest.startswith(_DIRECTIVES):
            instructions.append(_instruction(rest, line))
    return Kernel(_parameters(header[1]), tuple(instructions), labels, offsets, shared_bytes)


def operands_of(text: str) -> tuple[str, ...]:
    """Split at commas that no bracket encloses; ``{a, b}`` and ``[a + 4]`` stay whole."""
    parts = re.split(r",\s*(?![^{\[]*[}\]])", text.strip())
    return tuple(part.strip() for part in parts if part.strip())


def vector_of(operand: str) -> tuple[str, ...]:
    """The registers of ``{a, b}``, or the one register."""
    return operands_of(operand[1:-1]) if operand.startswith("{") else (operand,)


def _statements(body: str, first_line: int) -> Iterator[tuple[str, int]]:
    """What lies between semicolons up to the kernel's closing brace, with its line; no comments, no debug lines."""
    depth, collected, started = 1, "", first_line
    for number, raw in enumerate(body.split("\n"), first_line):
        line = re.sub(r"//.*", "", raw).strip()
        if line.startswith((".loc", ".file")):
            continue
        for character in line + " ":
            begins = not collected.strip() or collected.rstrip().endswith(":")
            if character in "{}" and begins:  # a scope; the braces of a vector stand within a statement
                depth += 1 if character == "{" else -1
                if depth == 0:
                    return
            elif character == ";":
                yield collected.strip(), started
                collected = ""
            else:
                if not collected.strip():
                    started = number
                collected += character
    raise PtxError("the kernel does not end")


def _instruction(text: str, line: int) -> Instruction:
    match = re.fullmatch(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", text, re.DOTALL)
    if match is None:
        raise PtxError(f"line {line}: cannot read {text!r}")
    return Instruction(match[2], match[1] == "!", tuple(match[3].split(".")), operands_of(match[4]), line, text)


def _parameters(text: str) -> dict[str, Parameter]:
    found, offset = {}, 0
    for match in re.finditer(r"\.param\s+\.(\w+)[^,]*?(\w+_param_\d+)", text):
        size = TYPES[match[1]].itemsize
        offset = -(-offset // size) * size
        found[match[2]] = Parameter(match[1], offset)
        offset += size
    return found


def _shared_variables(text: str) -> tuple[dict[str, int], int]:
    offsets, size = {}, 0
    for align, name, length in re.findall(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+(\w+)\[(\d*)\]", text):
        size = -(-size // int(align)) * int(align)
        offsets[name] = size
        size += int(length or 0)
    return offsets, size
