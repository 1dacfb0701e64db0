"""Sums of the exponentials of a block of rows: over all keys, and over each cell, in one pass over the keys.

Key columns are ordered so that the columns of a cell belong to one thread of a tensor core's accumulator, whose
thread m of 4 holds columns 8 j + 2 m and 8 j + 2 m + 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import load_columns, tile_scores

NO_SCORE: tl.constexpr = tl.constexpr(-256.0)  # 2^−256 is 0 in float32, and 0 · −256 is 0


@triton.jit
def key_scores(
    query, k_base, key_rows, key_valid, k_row, k_column,
    SIZE: tl.constexpr, FIRST: tl.constexpr, REPEAT: tl.constexpr, REST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """q kᵀ of the block and some keys, not scaled; queries that do not fit into registers are read again."""
    q_base, q_rows, q_valid, q_row, q_column, q_first, q_rest = query
    if REPEAT > 1:
        return tile_scores(
            q_base, q_rows, q_valid, q_row, q_column, k_base, key_rows, key_valid, k_row, k_column,
            SIZE, FIRST, REPEAT, REST, PRECISION,
        )  # fmt: skip
    k_tile = load_columns(k_base, key_rows, key_valid, k_row, k_column, 0, FIRST, SIZE)
    u = tl.dot(q_first, tl.trans(k_tile), input_precision=PRECISION)
    if REST > 0:
        k_tile = load_columns(k_base, key_rows, key_valid, k_row, k_column, FIRST, REST, SIZE)
        u = tl.dot(q_rest, tl.trans(k_tile), u, input_precision=PRECISION)
    return u


@triton.jit
def largest_scores(
    query, k_base, k_row, k_column, unit, first, last, ROWS: tl.constexpr, KEYS: tl.constexpr,
    SIZE: tl.constexpr, FIRST: tl.constexpr, REPEAT: tl.constexpr, REST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The largest score of each row among keys ``first`` to ``last``, in units of log₂; 0 where all are −∞."""
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    for start in tl.range(first, last, KEYS, num_stages=1):
        key_rows = start + tl.arange(0, KEYS)
        valid = key_rows < last
        u = key_scores(
            query, k_base, key_rows.to(tl.int64), valid, k_row, k_column, SIZE, FIRST, REPEAT, REST, PRECISION
        )
        largest = tl.maximum(largest, tl.max(tl.where(valid[None, :], u * unit, float("-inf")), 1))
    return tl.where(largest == float("-inf"), 0.0, largest)


@triton.jit
def add_products(total, p, z, COUNT: tl.constexpr, ROWS: tl.constexpr, EACH: tl.constexpr):
    """``total`` (ROWS, EACH, 4) + Σ p z over the last axis, of COUNT: chained, so that each product is one FFMA."""
    if COUNT == 2:
        p_0, p_1 = tl.split(p)
        z_0, z_1 = tl.split(z)
        return p_1 * z_1 + (p_0 * z_0 + total)
    shape: tl.constexpr = [ROWS, EACH, 4, COUNT // 4, 2, 2]
    p_even, p_odd = tl.split(tl.reshape(p, shape))
    z_even, z_odd = tl.split(tl.reshape(z, shape))
    p_0, p_2 = tl.split(p_even)
    p_1, p_3 = tl.split(p_odd)
    z_0, z_2 = tl.split(z_even)
    z_1, z_3 = tl.split(z_odd)
    if COUNT == 4:
        start = tl.reshape(total, [ROWS, EACH, 4, 1])
        return tl.reshape(p_3 * z_3 + (p_2 * z_2 + (p_1 * z_1 + (p_0 * z_0 + start))), [ROWS, EACH, 4])
    return total + tl.sum(p_3 * z_3 + (p_2 * z_2 + (p_1 * z_1 + p_0 * z_0)), 3)


@triton.jit
def of_cells(x, ROWS: tl.constexpr, EACH: tl.constexpr, PAIRS: tl.constexpr):
    """(ROWS, keys) -> (ROWS, EACH, 4, 2 · PAIRS): the columns of a cell, or of a thread's part of it, side by side."""
    own = tl.permute(tl.reshape(x, [ROWS, EACH, PAIRS, 4, 2]), (0, 1, 3, 2, 4))
    return tl.reshape(own, [ROWS, EACH, 4, 2 * PAIRS])


@triton.jit
def sum_keys(
    query, k_base, k_row, k_column, c, unit, sharpness, pooled_rows, row_valid, height, width, strips, tiles,
    SIZE: tl.constexpr, FIRST: tl.constexpr, REPEAT: tl.constexpr, REST: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, CELLS: tl.constexpr, SLOTS: tl.constexpr, WIDEST: tl.constexpr, ALIGNED: tl.constexpr,
    CELL_ROWS: tl.constexpr, CELL_COLUMNS: tl.constexpr, SHARP: tl.constexpr, CLAMP: tl.constexpr,
):  # fmt: skip
    """l = Σ 2^z, t = Σ 2^z z and Σ 2^{γ z}, each (ROWS,), with z = score − c; sums of cells go to ``pooled_rows``.

    A tile holds SLOTS keys of each of CELLS cells side by side. Tile after tile goes down through a row of cells, then
    through the next one; ``strips`` of cells where they are more than CELLS.
    """
    KEYS: tl.constexpr = CELLS * SLOTS
    # four threads have CELL_THREADS different cells, and each holds CELLS_EACH of them
    CELL_THREADS: tl.constexpr = min(CELLS, 4)
    CELLS_EACH: tl.constexpr = CELLS // CELL_THREADS
    PARTS: tl.constexpr = 4 // CELL_THREADS
    PAIRS: tl.constexpr = SLOTS // (2 * PARTS)
    column = tl.arange(0, KEYS)
    thread = column // 2 % 4
    cell = thread // PARTS * CELLS_EACH + column // (8 * PAIRS)
    slot = (thread % PARTS * PAIRS + column // 8 % PAIRS) * 2 + column % 2
    stored = tl.arange(0, CELLS)
    l = tl.zeros([ROWS, 4], tl.float32)  # noqa: E741
    t = tl.zeros([ROWS, CELLS_EACH, 4], tl.float32)
    l_sharp = tl.zeros([ROWS, 4], tl.float32)
    for strip in range(strips):
        cell_x = strip * CELLS + cell
        left, right = cell_x * width // CELL_COLUMNS, (cell_x + 1) * width // CELL_COLUMNS
        # cell a covers ⌊a · side / cells⌋ up to, but without, ⌊(a + 1) · side / cells⌋
        cell_row, turn, top, bottom = 0, 0, 0, height // CELL_ROWS
        sums = tl.zeros([ROWS, CELLS_EACH, 4], tl.float32)
        for tile in range(tiles):
            if ALIGNED:
                tile_base = k_base + tl.cast(tile, tl.int64) * (SLOTS // WIDEST) * width * k_row
                key_rows = slot // WIDEST * width + cell_x * WIDEST + slot % WIDEST
                valid = column < KEYS
            else:
                tile_base = k_base
                y, x = top + (turn * SLOTS + slot) // WIDEST, left + (turn * SLOTS + slot) % WIDEST
                valid = (y < bottom) & (x < right) & (cell_x < CELL_COLUMNS)
                key_rows = y * width + x
            u = key_scores(
                query, tile_base, key_rows.to(tl.int64), valid, k_row, k_column, SIZE, FIRST, REPEAT, REST, PRECISION
            )
            z = u * unit - c[:, None]
            if not ALIGNED:
                z = tl.where(valid[None, :], z, NO_SCORE)
            p = tl.exp2(z)
            p = of_cells(p, ROWS, CELLS_EACH, PAIRS)
            # a masked key has p = 0 and must add 0, not 0 · −∞
            finite = tl.maximum(z, NO_SCORE) if CLAMP else z
            t = add_products(t, p, of_cells(finite, ROWS, CELLS_EACH, PAIRS), 2 * PAIRS, ROWS, CELLS_EACH)
            if SHARP:
                l += tl.sum(tl.sum(p, 3), 1)  # noqa: E741
                p = tl.exp2(z * sharpness)
                if not ALIGNED:
                    p = tl.where(valid[None, :], p, 0.0)
                p = of_cells(p, ROWS, CELLS_EACH, PAIRS)
            sums += tl.sum(p, 3)
            is_last = (turn + 1) * SLOTS >= (bottom - top) * WIDEST
            if is_last:
                l_sharp += tl.sum(sums, 1)
                parts = tl.sum(tl.reshape(sums, [ROWS, CELLS_EACH, CELL_THREADS, PARTS]), 3)
                whole = tl.reshape(tl.permute(parts, (0, 2, 1)), [ROWS, CELLS])
                stored_x = strip * CELLS + stored
                at = pooled_rows[:, None] + (cell_row * CELL_COLUMNS + stored_x)[None, :]
                mask = row_valid[:, None] & (stored_x < CELL_COLUMNS)[None, :]
                tl.store(at, whole.to(pooled_rows.dtype.element_ty), mask=mask)
                sums = tl.zeros([ROWS, CELLS_EACH, 4], tl.float32)
            # not inside of the branch: the loads of later tiles must not wait for it
            cell_row += tl.where(is_last, 1, 0)
            turn = tl.where(is_last, 0, turn + 1)
            top, bottom = cell_row * height // CELL_ROWS, (cell_row + 1) * height // CELL_ROWS
    total_sharp = tl.sum(l_sharp, 1)
    return tl.sum(l, 1) if SHARP else total_sharp, tl.sum(tl.sum(t, 1), 1), total_sharp
