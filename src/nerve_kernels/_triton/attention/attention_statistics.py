"""attention_statistics: entropy, lse, window and cells of a block of rows of one head, by one program.

Exponentials are taken against a reference point c of each row, not against its running maximum. Float32 holds 2^±126,
so c need not be the maximum: it is that of the keys of the block's own tokens, where self-attention is large. It stays
as it is for all keys, so no sum is ever rescaled, and each thread keeps sums of its own. Only where a row's sum shows
that its maximum lies far above c, or where a key is masked, the keys are read for their maximum and summed once more.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

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
    multiprocessors,
    score_precision,
)

from .attention_entropy import MIN_SCALE
from .cell_sums import key_scores, largest_scores, sum_keys
from .tiles import LN_2, LOG2_E, load_columns

# A sum above it has lost 2^−24 · 40 of its entropy; then the maximum is searched for.
MAX_SUM: tl.constexpr = tl.constexpr(2.0**40)
# of e^{γ (s − c)}, of which only the logarithm and shares are wanted
MAX_SHARP_SUM: tl.constexpr = tl.constexpr(2.0**100)
ZEROS: tl.constexpr = tl.constexpr(1024)  # written at once


@triton.jit
def attention_statistics_kernel(
    q, k, entropy, lse, local, pooled, cell_lse,
    q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
    heads, queries, scale, sharpness, height, width, strips, tiles,
    Q_ALIGN: tl.constexpr, K_ALIGN: tl.constexpr,
    SIZE: tl.constexpr, FIRST: tl.constexpr, REPEAT: tl.constexpr, REST: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, CELLS: tl.constexpr, SLOTS: tl.constexpr, WIDEST: tl.constexpr, ALIGNED: tl.constexpr,
    CELL_ROWS: tl.constexpr, CELL_COLUMNS: tl.constexpr, SHARP: tl.constexpr,
    WINDOW_ROWS: tl.constexpr, WINDOW_COLUMNS: tl.constexpr, PERIOD: tl.constexpr, STRIP: tl.constexpr,
    KEYS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(queries, ROWS)
    head_index = (tl.program_id(0) // blocks).to(tl.int64)
    batch, head = head_index // heads, head_index % heads
    first_row = tl.program_id(0) % blocks * ROWS
    rows = first_row + tl.arange(0, ROWS)
    row_valid = rows < queries
    q_base = q + (batch * q_batch + head * q_head) * Q_ALIGN
    k_base = k + (batch * k_batch + head * k_head) * K_ALIGN
    q_rows, q_step = rows.to(tl.int64), q_row * Q_ALIGN
    q_first = load_columns(q_base, q_rows, row_valid, q_step, q_column, 0, FIRST, SIZE)
    q_rest = q_first
    if REST > 0 and REPEAT == 1:
        q_rest = load_columns(q_base, q_rows, row_valid, q_step, q_column, FIRST, REST, SIZE)
    query = (q_base, q_rows, row_valid, q_step, q_column, q_first, q_rest)
    out = head_index * queries + rows
    row_step = k_row * K_ALIGN

    # what of a window lies off the grid stays 0
    local_rows = local + out * (WINDOW_ROWS * WINDOW_COLUMNS)
    block_start = local + (head_index * queries + first_row) * (WINDOW_ROWS * WINDOW_COLUMNS)
    count = tl.minimum(ROWS, queries - first_row) * (WINDOW_ROWS * WINDOW_COLUMNS)
    for first in range(0, count, ZEROS):
        at = first + tl.arange(0, ZEROS)
        tl.store(block_start + at, tl.zeros([ZEROS], local.dtype.element_ty), mask=at < count)

    unit = scale * LOG2_E
    pooled_rows = pooled + out * (CELL_ROWS * CELL_COLUMNS)
    c = largest_scores(
        query, k_base, row_step, k_column, unit, first_row, min(first_row + ROWS, queries),
        ROWS, KEYS, SIZE, FIRST, REPEAT, REST, PRECISION,
    )  # fmt: skip
    l, t, l_sharp = sum_keys(  # noqa: E741
        query, k_base, row_step, k_column, c, unit, sharpness, pooled_rows, row_valid, height, width,
        strips, tiles, SIZE, FIRST, REPEAT, REST, PRECISION, ROWS, CELLS, SLOTS, WIDEST, ALIGNED, CELL_ROWS,
        CELL_COLUMNS, SHARP, False,
    )  # fmt: skip
    # neither NaN nor too large
    good = (l < MAX_SUM) & (t == t) & (l_sharp < MAX_SHARP_SUM)
    if tl.max(tl.where(good | ~row_valid, 0, 1), 0) > 0:
        tl.debug_barrier()
        c = largest_scores(
            query, k_base, row_step, k_column, unit, 0, queries, ROWS, KEYS, SIZE, FIRST, REPEAT, REST, PRECISION
        )
        l, t, l_sharp = sum_keys(  # noqa: E741
            query, k_base, row_step, k_column, c, unit, sharpness, pooled_rows, row_valid, height, width,
            strips, tiles, SIZE, FIRST, REPEAT, REST, PRECISION, ROWS, CELLS, SLOTS, WIDEST, ALIGNED, CELL_ROWS,
            CELL_COLUMNS, SHARP, True,
        )  # fmt: skip
    h = LN_2 * (tl.log2(l) - t / l)
    tl.store(entropy + out, tl.where(h < 0, 0.0, h), mask=row_valid)
    # a row without a finite score has no distribution: NaN, as softmax has it
    tl.store(lse + out, tl.where(l == 0, float("nan"), LN_2 * (c + tl.log2(l))), mask=row_valid)
    sharp_lse = LN_2 * (sharpness * c + tl.log2(l_sharp))
    tl.store(cell_lse + out, tl.where(l_sharp == 0, float("nan"), sharp_lse), mask=row_valid)

    tl.debug_barrier()  # sums and zeros were written by other threads
    share = 1.0 / l_sharp
    for start in range(0, CELL_ROWS * CELL_COLUMNS, CHUNK):
        cell = start + tl.arange(0, CHUNK)
        at = pooled_rows[:, None] + cell[None, :]
        mask = row_valid[:, None] & (cell < CELL_ROWS * CELL_COLUMNS)[None, :]
        value = tl.load(at, mask=mask).to(tl.float32) * share[:, None]
        tl.store(at, value.to(pooled.dtype.element_ty), mask=mask)

    # The scores of the windows once more, 7 to 9 of 64 rows of keys: a branch in the loop above would cost more. Of the
    # columns that are alike modulo PERIOD a row's window has at most one, so that their sum picks it.
    share = 1.0 / l
    first_y = tl.maximum(first_row // width - WINDOW_ROWS // 2, 0)
    last_y = tl.minimum((tl.minimum(first_row + ROWS, queries) - 1) // width + WINDOW_ROWS // 2, height - 1)
    query_y, query_x = rows // width - WINDOW_ROWS // 2, rows % width - WINDOW_COLUMNS // 2
    residue, turns = tl.arange(0, PERIOD), tl.arange(0, STRIP // PERIOD)
    for left in range(0, width, STRIP):
        key_x = left + tl.arange(0, STRIP)
        first_x = (query_x - left)[:, None]
        column = tl.broadcast_to(residue[None, :], [ROWS, PERIOD])
        if STRIP > PERIOD or WINDOW_COLUMNS <= PERIOD:
            column = first_x + (residue[None, :] - first_x + PERIOD * (1 << 20)) % PERIOD
        window_x = column - first_x
        picked = (column >= 0) & (column < min(STRIP, width - left))
        picked = picked & (window_x >= 0) & (window_x < WINDOW_COLUMNS) & row_valid[:, None]
        turn_of_column = tl.where(picked, column // PERIOD, -1)
        for y in range(first_y, last_y + 1):
            key_rows = (y * width + key_x).to(tl.int64)
            u = key_scores(
                query, k_base, key_rows, key_x < width, row_step, k_column, SIZE, FIRST, REPEAT, REST, PRECISION
            )
            is_picked = turns[None, :, None] == turn_of_column[:, None, :]
            score = tl.sum(tl.where(is_picked, tl.reshape(u, [ROWS, STRIP // PERIOD, PERIOD]), 0.0), 1)
            p = tl.exp2(score * unit - c[:, None]) * share[:, None]
            window_y = (y - query_y)[:, None]
            at = local_rows[:, None] + (window_y * WINDOW_COLUMNS + window_x)
            in_window = picked & (window_y >= 0) & (window_y < WINDOW_ROWS)
            tl.store(at, p.to(local.dtype.element_ty), mask=in_window)


class Tiling(NamedTuple):
    """How keys are dealt out to tiles: ``slots`` keys of each of ``cells`` cells; see ``sum_keys``."""

    cells: int
    slots: int
    widest: int
    aligned: bool
    strips: int
    tiles: int

    @classmethod
    def of(cls, grid: list[int], cells: list[int], keys: int) -> Tiling:
        """Tiles of at most ``keys``; where cells are even and powers of two, every slot holds a key."""
        tallest, widest = (triton.cdiv(side, count) for side, count in zip(grid, cells, strict=True))
        at_once = min(triton.next_power_of_2(cells[1]), max(1, keys // triton.next_power_of_2(widest)), keys // 2)
        slots = min(keys // at_once, triton.next_power_of_2(tallest * widest))
        slots = max(slots, 16 // at_once, 2 * (4 // min(at_once, 4)))
        edges = [row * grid[0] // cells[0] for row in range(cells[0] + 1)]
        heights = [bottom - top for top, bottom in itertools.pairwise(edges)]
        even = all(side % count == 0 for side, count in zip(grid, cells, strict=True)) and cells[1] % at_once == 0
        return cls(
            at_once,
            slots,
            widest,
            even and slots % widest == 0 and tallest * widest % slots == 0,
            triton.cdiv(cells[1], at_once),
            sum(triton.cdiv(height * widest, slots) for height in heights),
        )


def plan(
    q: Tensor,
    k: Tensor,
    grid: list[int],
    window: list[int],
    cells: list[int],
    scale: float,
    sharpness: float,
    results: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
) -> Launch:
    """The launch that writes ``results``: entropy, lse, local, pooled and cell_lse, all contiguous."""
    batch, heads, queries, size = q.shape
    rows, keys, warps, stages = _blocks(q)
    strides, aligned = matrix_strides(q=q, k=k)
    split = HeadSplit.of(size) if is_low_precision(q) or size <= 80 else HeadSplit.into_slices(size)
    tiling = Tiling.of(grid, cells, keys)
    strip = max(16, min(keys, triton.next_power_of_2(grid[1])))
    names = ("entropy", "lse", "local", "pooled", "cell_lse")
    return Launch(
        attention_statistics_kernel,
        batch * heads * triton.cdiv(queries, rows),
        {"q": q, "k": k, **dict(zip(names, results, strict=True)), **strides}
        | {"heads": heads, "queries": queries, "scale": _nonzero(scale), "sharpness": sharpness}
        | {"height": grid[0], "width": grid[1], "strips": tiling.strips, "tiles": tiling.tiles},
        aligned
        | {"SIZE": size, **split.constants(), "PRECISION": score_precision(q)}
        | {"ROWS": rows, "CELLS": tiling.cells, "SLOTS": tiling.slots, "WIDEST": tiling.widest}
        | {"ALIGNED": tiling.aligned, "CELL_ROWS": cells[0], "CELL_COLUMNS": cells[1], "SHARP": sharpness != 1}
        | {"WINDOW_ROWS": window[0], "WINDOW_COLUMNS": window[1]}
        | {"PERIOD": min(strip, max(8, triton.next_power_of_2(window[1]))), "STRIP": strip, "KEYS": keys}
        | {"CHUNK": min(64, triton.next_power_of_2(cells[0] * cells[1]))},
        warps,
        stages,
    )


def _nonzero(scale: float) -> float:
    """A scale of 0 would make 0 · ∞ = NaN of a masked key."""
    return scale if abs(scale) >= MIN_SCALE else MIN_SCALE


def _blocks(q: Tensor) -> tuple[int, int, int, int]:
    """Rows, keys, warps and pipeline stages; fewer rows a program where heads and rows are few."""
    size, capability = q.shape[3], compute_capability(q)
    if not is_low_precision(q):
        if score_precision(q) == "tf32x3":
            return 128, 64, 8, 1
        is_tf32 = dot_precision(q) == "tf32"
        if size <= (64 if is_tf32 else 48):
            return 64, 64, 8, 1
        if is_tf32:
            if capability == 8 and size > 128:
                return 64, 16, 8, 1
            return 32, 16 if 96 < size <= 128 else 32, 8, 1
        if capability in (10, 12) and 64 < size <= 96:
            return 32, 16, 8, 1
        return 32, 32, 4 if capability == 12 and size > 64 else 8, 1
    # all without a spill; an accumulator of wgmma takes fewer registers than one of Ampere's products
    rows = 128 if size <= (48 if capability in (8, 12) else 64) else 64
    while rows > 16 and q.shape[0] * q.shape[1] * triton.cdiv(q.shape[2], rows) < multiprocessors(q) * 3 // 4:
        rows //= 2
    # a row belongs to one warp, so that no sum crosses warps
    keys, stages = (64, 3) if size <= 64 else (64, 2) if size <= 128 else (32, 1)
    if {8: size > 128, 10: 96 < size <= 128, 12: size > 64}.get(capability):
        keys //= 2
    return rows, keys, min(4, rows // 16), stages


def run(
    q: Tensor,
    k: Tensor,
    grid: list[int],
    window: list[int],
    cells: list[int],
    scale: float,
    sharpness: float,
    bfloat16: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Entropy, lse, window and cells of every attention row, and the cells' lse."""
    if max(side * count for side, count in zip(grid, cells, strict=True)) >= 2**31:
        raise ValueError(f"cells: expected side · cells below 2³¹, got {tuple(cells)} cells of a {tuple(grid)} grid")
    rows, storage = q.shape[:3], torch.bfloat16 if bfloat16 else torch.float32
    entropy, lse, cell_lse = (torch.empty(rows, dtype=torch.float32, device=q.device) for _ in range(3))
    local = torch.empty((*rows, window[0] * window[1]), dtype=storage, device=q.device)
    pooled = torch.empty((*rows, cells[0] * cells[1]), dtype=storage, device=q.device)
    results = entropy, lse, local, pooled, cell_lse
    plan(q, k, grid, window, cells, scale, sharpness, results).run()
    return results
