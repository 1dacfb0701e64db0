"""Pieces that the attention kernels share: a tile of a matrix, scores of two tiles, and the fused map on one tile."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)  # e^x is 2^(x · log₂ e), and GPUs have 2^x
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def load_columns(
    base, rows, row_valid, row_stride, column_stride, START: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr
):
    """Columns START to START + WIDTH of some rows of a matrix with SIZE columns; 0 outside of it."""
    columns = START + tl.arange(0, WIDTH)
    mask = row_valid[:, None]
    if START + WIDTH > SIZE:
        mask = mask & (columns < SIZE)[None, :]
    return tl.load(base + rows[:, None] * row_stride + columns[None, :] * column_stride, mask=mask, other=0.0)


@triton.jit
def tile_scores(
    q_base, q_rows, q_valid, q_row, q_column,
    k_base, k_rows, k_valid, k_row, k_column,
    SIZE: tl.constexpr, FIRST: tl.constexpr, REPEAT: tl.constexpr, REST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """q kᵀ of two tiles of rows, in float32, not yet scaled: REPEAT slices of FIRST columns, then REST."""
    q = load_columns(q_base, q_rows, q_valid, q_row, q_column, 0, FIRST, SIZE)
    k = load_columns(k_base, k_rows, k_valid, k_row, k_column, 0, FIRST, SIZE)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if REPEAT > 1:
        for _ in range(1, REPEAT):
            q_base += FIRST * q_column
            k_base += FIRST * k_column
            q = load_columns(q_base, q_rows, q_valid, q_row, q_column, 0, FIRST, SIZE)
            k = load_columns(k_base, k_rows, k_valid, k_row, k_column, 0, FIRST, SIZE)
            scores = tl.dot(q, tl.trans(k), scores, input_precision=PRECISION)
    if REST > 0:
        LEFT: tl.constexpr = SIZE - (REPEAT - 1) * FIRST
        q = load_columns(q_base, q_rows, q_valid, q_row, q_column, FIRST, REST, LEFT)
        k = load_columns(k_base, k_rows, k_valid, k_row, k_column, FIRST, REST, LEFT)
        scores = tl.dot(q, tl.trans(k), scores, input_precision=PRECISION)
    return scores


@triton.jit
def fused_tile(
    total, q, k, w, lse, batch, heads, queries, scale,
    q_rows, q_valid, q_batch, q_head, q_row, q_column,
    k_rows, k_valid, k_batch, k_head, k_row, k_column,
    Q_ALIGN: tl.constexpr, K_ALIGN: tl.constexpr,
    SIZE: tl.constexpr, FIRST: tl.constexpr, REPEAT: tl.constexpr, REST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``total`` + Σ_h w_h e^{s − lse} on the tile q_rows × k_rows, heads added in their order.

    Rows of k that are not valid get the value of a score of 0, for the caller to ignore.
    """
    q_base = q + batch * q_batch * Q_ALIGN
    k_base = k + batch * k_batch * K_ALIGN
    for head in range(heads):
        scores = tile_scores(
            q_base, q_rows, q_valid, q_row * Q_ALIGN, q_column,
            k_base, k_rows, k_valid, k_row * K_ALIGN, k_column,
            SIZE, FIRST, REPEAT, REST, PRECISION,
        )  # fmt: skip
        row_lse = tl.load(lse + (batch * heads + head) * queries + q_rows, mask=q_valid, other=0.0)
        weight = tl.load(w + batch * heads + head).to(tl.float32)
        total += weight * tl.exp2((scores * scale - row_lse[:, None]) * LOG2_E)
        q_base += q_head * Q_ALIGN
        k_base += k_head * K_ALIGN
    return total
