"""local_affinity: Σ_h w_h e^{s − lse} inside a window around each token, rows renormalised, (B, N, kh·kw).

A program owns a tile of queries of the grid. The keys that its windows reach, tile and halo, are one block of columns:
one dot per head gives all scores, a mask keeps each row's window, heads are added in registers. Where tile and halo are
too large for one block, programs share them, and a second launch divides the rows by their sums.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerve_kernels._triton.launch import (
    HeadSplit,
    Launch,
    compute_capability,
    dot_precision,
    is_low_precision,
    matrix_strides,
)
from nerve_kernels.grids import MIN_WINDOW_MASS

from .tiles import fused_tile

FLOOR: tl.constexpr = tl.constexpr(MIN_WINDOW_MASS)


# a grid of another size is no other kernel
@triton.jit(do_not_specialize=["heads", "height", "width", "halo_blocks"])
def local_affinity_kernel(
    q, k, w, lse, values,
    q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
    heads, scale, height, width, halo_blocks,
    Q_ALIGN: tl.constexpr, K_ALIGN: tl.constexpr,
    SIZE: tl.constexpr, FIRST: tl.constexpr, REPEAT: tl.constexpr, REST: tl.constexpr, PRECISION: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr, HALO: tl.constexpr,
    WINDOW_ROWS: tl.constexpr, WINDOW_COLUMNS: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    tiles_x = tl.cdiv(width, TILE_COLUMNS)
    tiles = tl.cdiv(height, TILE_ROWS) * tiles_x
    tile = (tl.program_id(0) // halo_blocks) % tiles
    batch = (tl.program_id(0) // (halo_blocks * tiles)).to(tl.int64)
    top, left = (tile // tiles_x) * TILE_ROWS, (tile % tiles_x) * TILE_COLUMNS

    query = tl.arange(0, TILE_ROWS * TILE_COLUMNS)
    query_y, query_x = query // TILE_COLUMNS, query % TILE_COLUMNS
    query_valid = (top + query_y < height) & (left + query_x < width)
    rows = (top + query_y).to(tl.int64) * width + left + query_x

    halo_columns: tl.constexpr = TILE_COLUMNS + WINDOW_COLUMNS - 1
    key = (tl.program_id(0) % halo_blocks) * HALO + tl.arange(0, HALO)
    key_y, key_x = key // halo_columns, key % halo_columns
    y, x = top + key_y - WINDOW_ROWS // 2, left + key_x - WINDOW_COLUMNS // 2
    key_valid = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    key_rows = y.to(tl.int64) * width + x

    queries = height * width  # a batch, which has 64 bits, times it has 64 bits
    total = fused_tile(
        tl.zeros([TILE_ROWS * TILE_COLUMNS, HALO], tl.float32), q, k, w, lse, batch, heads, queries, scale,
        rows, query_valid, q_batch, q_head, q_row, q_column,
        key_rows, key_valid, k_batch, k_head, k_row, k_column,
        Q_ALIGN, K_ALIGN, SIZE, FIRST, REPEAT, REST, PRECISION,
    )  # fmt: skip
    window_y, window_x = key_y[None, :] - query_y[:, None], key_x[None, :] - query_x[:, None]
    in_window = (window_y >= 0) & (window_y < WINDOW_ROWS) & (window_x >= 0) & (window_x < WINDOW_COLUMNS)
    total = tl.where(in_window & key_valid[None, :], total, 0.0)
    if NORMALIZE:
        mass = tl.sum(total, 1)[:, None]
        identity = (window_y == WINDOW_ROWS // 2) & (window_x == WINDOW_COLUMNS // 2)
        total = tl.where(mass < FLOOR, tl.where(identity, 1.0, 0.0), total / mass)
    # 64 bits to the tile's first token, 32 within the tile: a pointer per score would not fit into registers
    length: tl.constexpr = WINDOW_ROWS * WINDOW_COLUMNS
    out = values + (batch * queries + top * width + left) * length
    row_start = (query_y * width + query_x) * length
    tl.store(
        out + (row_start[:, None] + window_y * WINDOW_COLUMNS + window_x), total, mask=in_window & query_valid[:, None]
    )


@triton.jit
def normalize_rows_kernel(values, count, LENGTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Divide each row by its sum, in place; a row below the floor becomes 1 at its centre and 0 elsewhere."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = (rows < count)[:, None]
    mass = tl.zeros([ROWS], tl.float32)
    for start in range(0, LENGTH, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)[None, :]
        value = tl.load(values + rows[:, None] * LENGTH + columns, mask=valid & (columns < LENGTH), other=0.0)
        mass += tl.sum(value, 1)
    for start in range(0, LENGTH, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)[None, :]
        at = values + rows[:, None] * LENGTH + columns
        value = tl.load(at, mask=valid & (columns < LENGTH), other=0.0)
        identity = tl.where(columns == LENGTH // 2, 1.0, 0.0)
        value = tl.where(mass[:, None] < FLOOR, identity, value / mass[:, None])
        tl.store(at, value, mask=valid & (columns < LENGTH))


def plan(
    q: Tensor,
    k: Tensor,
    w: Tensor,
    lse: Tensor,
    grid: list[int],
    window: list[int],
    scale: float,
    normalize: bool,
    values: Tensor,
) -> list[Launch]:
    """The one or two launches that write ``values``, (B, N, kh·kw) float32; ``w`` and ``lse`` are contiguous."""
    batch, heads, queries, size = q.shape
    tile_rows, tile_columns, most_keys, warps, stages = _blocks(q)
    strides, aligned = matrix_strides(q=q, k=k)
    split = HeadSplit.of(size) if is_low_precision(q) and size <= 80 else HeadSplit.into_slices(size)
    reached = (tile_rows + window[0] - 1) * (tile_columns + window[1] - 1)
    halo = min(most_keys, triton.next_power_of_2(reached))
    halo_blocks = triton.cdiv(reached, halo)
    tiles = triton.cdiv(grid[0], tile_rows) * triton.cdiv(grid[1], tile_columns)
    sums = Launch(
        local_affinity_kernel,
        batch * tiles * halo_blocks,
        {"q": q, "k": k, "w": w, "lse": lse, "values": values, **strides}
        | {"heads": heads, "scale": scale, "height": grid[0], "width": grid[1], "halo_blocks": halo_blocks},
        aligned
        | {"SIZE": size, **split.constants(), "PRECISION": dot_precision(q)}
        | {"TILE_ROWS": tile_rows, "TILE_COLUMNS": tile_columns, "HALO": halo}
        | {"WINDOW_ROWS": window[0], "WINDOW_COLUMNS": window[1], "NORMALIZE": normalize and halo_blocks == 1},
        warps,
        stages,
    )
    if not normalize or halo_blocks == 1:
        return [sums]
    return [sums, _plan_normalization(values, batch * queries, window[0] * window[1])]


def _plan_normalization(values: Tensor, rows: int, length: int) -> Launch:
    columns = min(256, triton.next_power_of_2(length))
    at_once = 1024 // columns
    constants = {"LENGTH": length, "ROWS": at_once, "COLUMNS": columns}
    return Launch(normalize_rows_kernel, triton.cdiv(rows, at_once), {"values": values, "count": rows}, constants, 4, 1)


def _blocks(q: Tensor) -> tuple[int, int, int, int, int]:
    """Rows and columns of a tile of queries, most keys of one block, warps and pipeline stages."""
    if is_low_precision(q):
        return 4, 8, 256, 8, 1
    return 4, (4 if q.shape[3] <= (64 if compute_capability(q) == 8 else 80) else 2), 128, 8, 1


def run(
    q: Tensor, k: Tensor, w: Tensor, lse: Tensor, grid: list[int], window: list[int], scale: float, normalize: bool
) -> Tensor:
    """Window values of each token."""
    size = (q.shape[0], q.shape[2], window[0] * window[1])
    values = torch.empty(size, dtype=torch.float32, device=q.device)
    for launch in plan(q, k, w.contiguous(), lse.contiguous(), grid, window, scale, normalize, values):
        launch.run()
    return values
