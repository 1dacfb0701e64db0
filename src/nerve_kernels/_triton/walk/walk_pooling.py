"""What stands beside the steps of a walk: the averages of P over cells, and the final division of rows by their sums.

A program of the first owns a few whole cells, even or not, however large: it sees their tokens slot by slot, in turns.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from nerve_kernels._triton.launch import Launch

from .walk_step import label_block


# a grid of another size is no other kernel
@triton.jit(do_not_specialize=["height", "width", "cell_rows", "cell_columns"])
def average_cells_kernel(
    p, pooled, labels, height, width, cell_rows, cell_columns,
    CELLS: tl.constexpr, SLOTS: tl.constexpr, ROUNDS: tl.constexpr, WIDEST: tl.constexpr, LABELS: tl.constexpr,
):  # fmt: skip
    """CELLS cells of SLOTS slots each at a time; a cell of more tokens than SLOTS takes several ROUNDS."""
    cells = cell_rows * cell_columns
    label_blocks, cell_blocks = tl.cdiv(labels, LABELS), tl.cdiv(cells, CELLS)
    first = ((tl.program_id(0) // label_blocks) % cell_blocks) * CELLS
    batch = (tl.program_id(0) // (label_blocks * cell_blocks)).to(tl.int64)
    label = (tl.program_id(0) % label_blocks) * LABELS + tl.arange(0, LABELS)
    slots = tl.arange(0, CELLS * SLOTS)
    cell = (first + slots // SLOTS).to(tl.int64)  # 64 bits for cell · side
    cell_y, cell_x = cell // cell_columns, cell % cell_columns
    # cell a covers ⌊a · side / cells⌋ up to, but without, ⌊(a + 1) · side / cells⌋
    top, bottom = cell_y * height // cell_rows, (cell_y + 1) * height // cell_rows
    left, right = cell_x * width // cell_columns, (cell_x + 1) * width // cell_columns

    base = p + batch * height * width * labels
    total = tl.zeros([CELLS * SLOTS, LABELS], tl.float32)
    for turn in range(ROUNDS):
        slot = turn * SLOTS + slots % SLOTS
        y, x = top + slot // WIDEST, left + slot % WIDEST
        valid = (y < bottom) & (x < right) & (cell < cells)
        at = (y * width + x)[:, None] * labels + label[None, :]
        total += tl.load(base + at, mask=valid[:, None] & (label < labels)[None, :], other=0.0).to(tl.float32)
    size = tl.max(tl.reshape((bottom - top) * (right - left), [CELLS, SLOTS]), 1)  # the same in every slot
    average = tl.sum(tl.reshape(total, [CELLS, SLOTS, LABELS]), 1) / size[:, None].to(tl.float32)
    cell_index = first + tl.arange(0, CELLS)
    at = (batch * cells + cell_index)[:, None] * labels + label[None, :]
    tl.store(pooled + at, average, mask=(cell_index < cells)[:, None] & (label < labels)[None, :])


@triton.jit
def divide_rows_kernel(p, out, rows, labels, ROWS: tl.constexpr, LABELS: tl.constexpr):
    """Each row divided by its sum, a row that sums to 0 as it is; ``out`` may be ``p``."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = (row < rows)[:, None]
    total = tl.zeros([ROWS, LABELS], tl.float32)
    for start in range(0, labels, LABELS):
        label = start + tl.arange(0, LABELS)[None, :]
        total += tl.load(p + row[:, None] * labels + label, mask=valid & (label < labels), other=0.0).to(tl.float32)
    mass = tl.sum(total, 1)[:, None]
    mass = tl.where(mass == 0, 1.0, mass)
    for start in range(0, labels, LABELS):
        label = start + tl.arange(0, LABELS)[None, :]
        at = row[:, None] * labels + label
        value = tl.load(p + at, mask=valid & (label < labels), other=0.0).to(tl.float32)
        tl.store(out + at, (value / mass).to(out.dtype.element_ty), mask=valid & (label < labels))


def plan_average(p: Tensor, grid: list[int], cells: list[int], pooled: Tensor) -> Launch:
    """The launch that writes ``pooled``, (B, h·w, C) float32; ``p`` (B, N, C) is contiguous."""
    batch, _, labels = p.shape
    tallest, widest = (triton.cdiv(grid[side], cells[side]) for side in (0, 1))  # the largest cell
    # 32 slots in all: each holds 64-bit bounds of its cell, and more of them left too few registers, and fewer programs
    # than a GPU has multiprocessors
    slots = min(32, triton.next_power_of_2(tallest * widest))
    at_once, block = 32 // slots, label_block(labels)
    return Launch(
        average_cells_kernel,
        batch * triton.cdiv(cells[0] * cells[1], at_once) * triton.cdiv(labels, block),
        {"p": p, "pooled": pooled, "labels": labels, "height": grid[0], "width": grid[1]}
        | {"cell_rows": cells[0], "cell_columns": cells[1]},
        {"CELLS": at_once, "SLOTS": slots, "ROUNDS": triton.cdiv(tallest * widest, slots), "WIDEST": widest}
        | {"LABELS": block},
        4,
        1,
    )


def plan_division(p: Tensor, out: Tensor) -> Launch:
    """The launch that divides the rows of ``p`` (B, N, C) into ``out``, both contiguous."""
    rows, labels = p.shape[0] * p.shape[1], p.shape[2]
    block = min(256, triton.next_power_of_2(labels))
    at_once = max(1, 2048 // block)
    constants = {"ROWS": at_once, "LABELS": block}
    programs = triton.cdiv(rows, at_once) if labels else 0
    return Launch(divide_rows_kernel, programs, {"p": p, "out": out, "rows": rows, "labels": labels}, constants, 4, 1)
