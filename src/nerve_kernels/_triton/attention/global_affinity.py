"""global_affinity: U[i, m] = Σ_{j in cell m} Σ_h w_h e^{s − lse} without the N × N map.

A program owns a block of query rows and a few cells, and sees the keys of its cells one after the other: key slots are
numbered cell by cell, each cell given the same power of two of slots. Slots beyond a cell's size (uneven cells, sizes
that are no power of two) stay empty. Scores of all heads are added slot by slot in registers, and slots are summed to
cells once, at the end.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerve_kernels._triton.launch import (
    HeadSplit,
    Launch,
    dot_precision,
    is_low_precision,
    matrix_strides,
    score_precision,
)

from .tiles import fused_tile


# a grid of another size is no other kernel
@triton.jit(do_not_specialize=["heads", "height", "width"])
def global_affinity_kernel(
    q, k, w, lse, u,
    q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
    heads, queries, scale, height, width, cell_rows, cell_columns,
    Q_ALIGN: tl.constexpr, K_ALIGN: tl.constexpr,
    SIZE: tl.constexpr, FIRST: tl.constexpr, REPEAT: tl.constexpr, REST: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, CELLS: tl.constexpr, SLOTS: tl.constexpr, ROUNDS: tl.constexpr, WIDEST: tl.constexpr,
):  # fmt: skip
    """CELLS cells of SLOTS slots each at a time; a cell of more than SLOTS keys takes several ROUNDS."""
    cells = cell_rows * cell_columns
    row_blocks, cell_blocks = tl.cdiv(queries, ROWS), tl.cdiv(cells, CELLS)
    block = tl.program_id(0) % (row_blocks * cell_blocks)
    batch = (tl.program_id(0) // (row_blocks * cell_blocks)).to(tl.int64)
    rows = (block // cell_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row_valid = rows < queries

    columns = tl.arange(0, CELLS * SLOTS)
    cell = (block % cell_blocks) * CELLS + columns // SLOTS
    cell_y, cell_x = cell // cell_columns, cell % cell_columns
    # cell a covers ⌊a · side / cells⌋ up to, but without, ⌊(a + 1) · side / cells⌋
    top, bottom = cell_y * height // cell_rows, (cell_y + 1) * height // cell_rows
    left, right = cell_x * width // cell_columns, (cell_x + 1) * width // cell_columns

    total = tl.zeros([ROWS, CELLS * SLOTS], tl.float32)
    for turn in range(ROUNDS):
        slot = turn * SLOTS + columns % SLOTS
        y, x = top + slot // WIDEST, left + slot % WIDEST
        key_valid = (y < bottom) & (x < right) & (cell < cells)
        part = fused_tile(
            tl.zeros([ROWS, CELLS * SLOTS], tl.float32), q, k, w, lse, batch, heads, queries, scale,
            rows, row_valid, q_batch, q_head, q_row, q_column,
            y.to(tl.int64) * width + x, key_valid, k_batch, k_head, k_row, k_column,
            Q_ALIGN, K_ALIGN, SIZE, FIRST, REPEAT, REST, PRECISION,
        )  # fmt: skip
        total += tl.where(key_valid[None, :], part, 0.0)
    sums = tl.sum(tl.reshape(total, [ROWS, CELLS, SLOTS]), 2)
    cell_index = (block % cell_blocks) * CELLS + tl.arange(0, CELLS)
    out = u + (batch * queries + rows)[:, None] * cells + cell_index[None, :]
    tl.store(out, sums, mask=row_valid[:, None] & (cell_index < cells)[None, :])


def plan(
    q: Tensor, k: Tensor, w: Tensor, lse: Tensor, grid: list[int], cells: list[int], scale: float, u: Tensor
) -> Launch:
    """The launch that writes ``u``, (B, N, h·w) float32; ``w`` and ``lse`` are contiguous."""
    batch, heads, queries, size = q.shape
    rows, keys, warps, stages = _blocks(q)
    strides, aligned = matrix_strides(q=q, k=k)
    split = HeadSplit.of(size) if is_low_precision(q) and size <= 80 else HeadSplit.into_slices(size)
    # the largest cell: sides ⌈side / cells⌉
    tallest, widest = triton.cdiv(grid[0], cells[0]), triton.cdiv(grid[1], cells[1])
    slots = min(keys, triton.next_power_of_2(tallest * widest))
    cells_at_once = keys // slots
    return Launch(
        global_affinity_kernel,
        batch * triton.cdiv(queries, rows) * triton.cdiv(cells[0] * cells[1], cells_at_once),
        {"q": q, "k": k, "w": w, "lse": lse, "u": u, **strides}
        | {"heads": heads, "queries": queries, "scale": scale, "height": grid[0], "width": grid[1]}
        | {"cell_rows": cells[0], "cell_columns": cells[1]},
        aligned
        | {"SIZE": size, **split.constants(), "PRECISION": score_precision(q)}
        | {"ROWS": rows, "CELLS": cells_at_once, "SLOTS": slots}
        | {"ROUNDS": triton.cdiv(tallest * widest, slots), "WIDEST": widest},
        warps,
        stages,
    )


def _blocks(q: Tensor) -> tuple[int, int, int, int]:
    """Rows, key slots, warps and pipeline stages."""
    if is_low_precision(q):
        return (64, 64, 4, 2)
    if score_precision(q) == "tf32x3":
        return 128, 64, 8, 1
    fits_64_rows = dot_precision(q) == "tf32" or 64 < q.shape[3] <= 80  # without a spill on any target
    return (64 if fits_64_rows else 32, 64, 8, 1)


def run(q: Tensor, k: Tensor, w: Tensor, lse: Tensor, grid: list[int], cells: list[int], scale: float) -> Tensor:
    """Attention of each query to each cell of the key grid."""
    if max(side * count for side, count in zip(grid, cells, strict=True)) >= 2**31:
        raise ValueError(f"cells: expected side · cells below 2³¹, got {tuple(cells)} cells of a {tuple(grid)} grid")
    u = torch.empty((q.shape[0], q.shape[2], cells[0] * cells[1]), dtype=torch.float32, device=q.device)
    plan(q, k, w.contiguous(), lse.contiguous(), grid, cells, scale, u).run()
    return u
