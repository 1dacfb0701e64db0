"""The gradient of window values, dL/dvalues[i, o] += share · Σ_c λ[i, c] P[i + o, c], without an N × N matrix.

A program owns a tile of tokens and a part of its halo. λ Pᵀ on tile × halo is one dot per block of labels; what lies in
a token's window is added to its gradient, which no other program touches. Where one set of values served all of a
batch, the program goes through the batch in its order.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from nerve_kernels._triton.launch import Launch, dot_precision

from .walk_step import label_block


@triton.jit
def window_values_gradient_kernel(
    adjoint, p, grad_values, labels, height, width, batches, share,
    PRECISION: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr, HALO: tl.constexpr,
    LABELS: tl.constexpr, WINDOW_ROWS: tl.constexpr, WINDOW_COLUMNS: tl.constexpr,
):  # fmt: skip
    halo_columns: tl.constexpr = TILE_COLUMNS + WINDOW_COLUMNS - 1
    reached: tl.constexpr = (TILE_ROWS + WINDOW_ROWS - 1) * halo_columns
    halo_blocks: tl.constexpr = (reached + HALO - 1) // HALO
    tiles_x = tl.cdiv(width, TILE_COLUMNS)
    tiles = tl.cdiv(height, TILE_ROWS) * tiles_x
    tile = (tl.program_id(0) // halo_blocks) % tiles
    first = (tl.program_id(0) // (halo_blocks * tiles)).to(tl.int64)
    top, left = (tile // tiles_x) * TILE_ROWS, (tile % tiles_x) * TILE_COLUMNS

    token = tl.arange(0, TILE_ROWS * TILE_COLUMNS)
    token_y, token_x = token // TILE_COLUMNS, token % TILE_COLUMNS
    valid = (top + token_y < height) & (left + token_x < width)
    rows = (top + token_y).to(tl.int64) * width + left + token_x
    halo = (tl.program_id(0) % halo_blocks) * HALO + tl.arange(0, HALO)
    halo_y, halo_x = halo // halo_columns, halo % halo_columns
    y, x = top + halo_y - WINDOW_ROWS // 2, left + halo_x - WINDOW_COLUMNS // 2
    halo_valid = (halo < reached) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    halo_rows = y.to(tl.int64) * width + x

    total = tl.zeros([TILE_ROWS * TILE_COLUMNS, HALO], tl.float32)
    for turn in range(batches):
        base = (first * batches + turn) * height * width * labels
        for start in range(0, labels, LABELS):
            label = start + tl.arange(0, LABELS)
            label_valid = (label < labels)[None, :]
            at = rows[:, None] * labels + label[None, :]
            tile_adjoint = tl.load(adjoint + base + at, mask=valid[:, None] & label_valid, other=0.0)
            at = halo_rows[:, None] * labels + label[None, :]
            halo_p = tl.load(p + base + at, mask=halo_valid[:, None] & label_valid, other=0.0).to(tl.float32)
            total = tl.dot(tile_adjoint, tl.trans(halo_p), total, input_precision=PRECISION)

    window_y, window_x = halo_y[None, :] - token_y[:, None], halo_x[None, :] - token_x[:, None]
    in_window = (window_y >= 0) & (window_y < WINDOW_ROWS) & (window_x >= 0) & (window_x < WINDOW_COLUMNS)
    mask = in_window & valid[:, None] & halo_valid[None, :]
    column = window_y * WINDOW_COLUMNS + window_x
    at = grad_values + (first * height * width + rows[:, None]) * (WINDOW_ROWS * WINDOW_COLUMNS) + column
    tl.store(at, tl.load(at, mask=mask, other=0.0) + share * total, mask=mask)


def plan_window_values(
    adjoint: Tensor, p: Tensor, grid: list[int], window: list[int], share: float, grad_values: Tensor
) -> Launch:
    """The launch that adds to ``grad_values``, (B or 1, N, kh·kw) float32.

    ``adjoint`` and ``p`` (B, N, C) are contiguous.
    """
    batch, _, labels = p.shape
    rows, columns, halo = 4, 8, 64
    reached = (rows + window[0] - 1) * (columns + window[1] - 1)
    tiles = triton.cdiv(grid[0], rows) * triton.cdiv(grid[1], columns)
    kept = grad_values.shape[0]
    return Launch(
        window_values_gradient_kernel,
        kept * tiles * triton.cdiv(reached, halo),
        {"adjoint": adjoint, "p": p, "grad_values": grad_values, "labels": labels}
        | {"height": grid[0], "width": grid[1], "batches": batch // kept, "share": share},
        {"PRECISION": dot_precision(adjoint), "TILE_ROWS": rows, "TILE_COLUMNS": columns, "HALO": halo}
        | {"LABELS": min(32, label_block(labels)), "WINDOW_ROWS": window[0], "WINDOW_COLUMNS": window[1]},
        8,
        2,
    )
