"""attention_gradient: of q and k, by one kernel that is started twice: for blocks of queries and for blocks of keys.

A program owns a block of one side and reads the other side once, computing the scores anew: no two programs add to the
same number, so there are no atomics and results repeat bit for bit.
"""

from __future__ import annotations

from typing import Any

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

from .tiles import LOG2_E, load_columns, tile_scores


@triton.jit
def _add_product(total, gradient, matrix, IN_FLOAT32: tl.constexpr, PRECISION: tl.constexpr):
    """``total`` + gradient · matrix. Gradients may lie below all numbers of float16, so that is widened."""
    if IN_FLOAT32:
        return tl.dot(gradient, matrix.to(tl.float32), total, input_precision=PRECISION)
    return tl.dot(gradient.to(matrix.dtype), matrix, total, input_precision=PRECISION)


# a grid of another size is no other kernel
@triton.jit(do_not_specialize=["heads", "queries", "keys", "height", "width"])
def attention_gradient_kernel(
    q, k, lse, a, b, cell_lse, c, local, pooled, gradient, row_sums,
    q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
    pooled_batch, pooled_head, pooled_row,
    heads, queries, keys, scale, sharpness, height, width,
    Q_ALIGN: tl.constexpr, K_ALIGN: tl.constexpr,
    SIZE: tl.constexpr, FIRST: tl.constexpr, REPEAT: tl.constexpr, REST: tl.constexpr, PARTS: tl.constexpr,
    PRECISION: tl.constexpr, IN_FLOAT32: tl.constexpr, PRODUCT_PRECISION: tl.constexpr,
    OWN: tl.constexpr, OTHER: tl.constexpr, OF_KEYS: tl.constexpr,
    TERMS: tl.constexpr, POOLED: tl.constexpr, SHARP: tl.constexpr, LOCAL: tl.constexpr,
    WINDOW_ROWS: tl.constexpr, WINDOW_COLUMNS: tl.constexpr, CELL_ROWS: tl.constexpr, CELL_COLUMNS: tl.constexpr,
    EACH_KEY: tl.constexpr,
):  # fmt: skip
    """Tiles are (own, other); where keys own them, a number of a row is one of a column."""
    if OF_KEYS:
        own_count, other_count = keys, queries
    else:
        own_count, other_count = queries, keys
    blocks = tl.cdiv(own_count, OWN) * PARTS
    head_index = (tl.program_id(0) // blocks).to(tl.int64)
    batch, head = head_index // heads, head_index % heads
    part = tl.program_id(0) % PARTS
    own_start = tl.program_id(0) % blocks // PARTS * OWN
    own = own_start + tl.arange(0, OWN).to(tl.int64)
    own_valid = own < own_count
    q_base = q + (batch * q_batch + head * q_head) * Q_ALIGN
    k_base = k + (batch * k_batch + head * k_head) * K_ALIGN
    if OF_KEYS:
        own_base, own_step, own_column = k_base, k_row * K_ALIGN, k_column
        other_base, other_step, other_column = q_base, q_row * Q_ALIGN, q_column
    else:
        own_base, own_step, own_column = q_base, q_row * Q_ALIGN, q_column
        other_base, other_step, other_column = k_base, k_row * K_ALIGN, k_column
    own_first = load_columns(own_base, own, own_valid, own_step, own_column, 0, FIRST, SIZE)
    own_rest = own_first
    total_rest = tl.zeros([OWN, 16], tl.float32)
    if REST > 0 and REPEAT == 1:
        own_rest = load_columns(own_base, own, own_valid, own_step, own_column, FIRST, REST, SIZE)
        total_rest = tl.zeros([OWN, REST], tl.float32)
    total = tl.zeros([OWN, FIRST], tl.float32)
    sums = tl.zeros([OWN], tl.float32)
    columns = part * FIRST + tl.arange(0, FIRST)
    for start in range(0, other_count, OTHER):
        other = start + tl.arange(0, OTHER).to(tl.int64)
        other_valid = other < other_count
        if REPEAT == 1:
            other_first = load_columns(other_base, other, other_valid, other_step, other_column, 0, FIRST, SIZE)
            u = tl.dot(own_first, tl.trans(other_first), input_precision=PRECISION)
            if REST > 0:
                other_rest = load_columns(other_base, other, other_valid, other_step, other_column, FIRST, REST, SIZE)
                u = tl.dot(own_rest, tl.trans(other_rest), u, input_precision=PRECISION)
        else:
            u = tile_scores(
                own_base, own, own_valid, own_step, own_column,
                other_base, other, other_valid, other_step, other_column,
                SIZE, FIRST, REPEAT, REST, PRECISION,
            )  # fmt: skip
            slice_at = other_base + other[:, None] * other_step + columns[None, :] * other_column
            other_first = tl.load(slice_at, mask=other_valid[:, None] & (columns < SIZE)[None, :], other=0.0)

        # 64 bits to the first row, 32 from there on: wide places of a whole tile would not fit into registers
        if OF_KEYS:
            row, row_valid = tl.arange(0, OTHER)[None, :], other_valid[None, :]
            key, key_valid = own_start + tl.arange(0, OWN)[:, None], own_valid[:, None]
            row_start, rows, key_start, key_count = start, OTHER, own_start, OWN
        else:
            row, row_valid = tl.arange(0, OWN)[:, None], own_valid[:, None]
            key, key_valid = start + tl.arange(0, OTHER)[None, :], other_valid[None, :]
            row_start, rows, key_start, key_count = own_start, OWN, start, OTHER
        first_row = head_index * queries + row_start
        # what a row that is not there gives is multiplied with zeros of q, or not stored
        x = u * scale - tl.load(lse + first_row + row, mask=row_valid, other=0.0)
        p = tl.exp2(x * LOG2_E)
        inner = tl.zeros_like(p)
        if TERMS:
            # a masked key has p = 0 and must give 0, not 0 · −∞
            inner = tl.load(a + first_row + row, mask=row_valid, other=0.0) + tl.load(
                b + first_row + row, mask=row_valid, other=0.0
            ) * tl.maximum(x, -256.0)
        if LOCAL:
            last_row, last_key = min(row_start + rows, queries) - 1, min(key_start + key_count, keys) - 1
            is_near = last_key // width >= row_start // width - WINDOW_ROWS // 2
            is_near = is_near & (key_start // width <= last_row // width + WINDOW_ROWS // 2)
            if is_near:
                window_y = key // width - (row_start + row) // width + WINDOW_ROWS // 2
                window_x = key % width - (row_start + row) % width + WINDOW_COLUMNS // 2
                inside = (window_y >= 0) & (window_y < WINDOW_ROWS) & (window_x >= 0) & (window_x < WINDOW_COLUMNS)
                at = row * (WINDOW_ROWS * WINDOW_COLUMNS) + window_y * WINDOW_COLUMNS + window_x
                of_window = local + first_row * (WINDOW_ROWS * WINDOW_COLUMNS)
                inner += tl.load(of_window + at, mask=inside & row_valid & key_valid, other=0.0).to(tl.float32)
        if POOLED:
            if EACH_KEY:
                cell = key
            else:
                # cell a covers ⌊a · side / cells⌋ up to, but without, ⌊(a + 1) · side / cells⌋
                cell_y = ((key // width + 1) * CELL_ROWS - 1) // height
                cell_x = ((key % width + 1) * CELL_COLUMNS - 1) // width
                cell = cell_y * CELL_COLUMNS + cell_x
            of_cells = pooled + batch * pooled_batch + head * pooled_head + tl.cast(row_start, tl.int64) * pooled_row
            of_cell = tl.load(of_cells + row * pooled_row + cell, mask=row_valid & key_valid, other=0.0).to(tl.float32)
            if SHARP:
                sharp_lse = tl.load(cell_lse + first_row + row, mask=row_valid, other=0.0)
                sharp = tl.exp2((u * (scale * sharpness) - sharp_lse) * LOG2_E) * sharpness
                d = p * inner + sharp * (tl.load(c + first_row + row, mask=row_valid, other=0.0) + of_cell)
            else:
                d = p * (inner + of_cell)
        else:
            d = p * inner
        # a key that is not there has a score of 0, of which e may be ∞
        d = tl.where(key_valid, d, 0.0)
        if not OF_KEYS:
            sums += tl.sum(d, 1)
        total = _add_product(total, d, other_first, IN_FLOAT32, PRODUCT_PRECISION)
        if REST > 0 and REPEAT == 1:
            total_rest = _add_product(total_rest, d, other_rest, IN_FLOAT32, PRODUCT_PRECISION)

    out = gradient + (head_index * own_count + own)[:, None] * SIZE
    tl.store(out + columns[None, :], total * scale, mask=own_valid[:, None] & (columns < SIZE)[None, :])
    if REST > 0 and REPEAT == 1:
        rest = FIRST + tl.arange(0, REST)
        tl.store(out + rest[None, :], total_rest * scale, mask=own_valid[:, None] & (rest < SIZE)[None, :])
    if not OF_KEYS:
        tl.store(row_sums + head_index * queries + own, sums, mask=own_valid & (part == 0))


def plan(
    q: Tensor,
    k: Tensor,
    rows: dict[str, Tensor | None],
    grid: list[int],
    window: list[int],
    cells: list[int],
    scale: float,
    sharpness: float,
    results: tuple[Tensor, Tensor, Tensor],
) -> list[Launch]:
    """The two launches that write ``results``: dq, dk and the row sums, all contiguous float32.

    ``rows`` are ``lse``, ``a``, ``b``, ``cell_lse``, ``c`` and ``local``, contiguous, and ``pooled``, of which the last
    dimension is; all but ``lse`` may be None.
    """
    batch, heads, queries, size = q.shape
    lse, pooled = rows["lse"], rows["pooled"]
    own, other, warps, stages = _blocks(q, pooled is not None or rows["local"] is not None)
    strides, aligned = matrix_strides(q=q, k=k)
    split = HeadSplit.of(size) if size <= (80 if is_low_precision(q) else 48) else HeadSplit.into_slices(size)
    parts = 1 if split.repeat == 1 else split.repeat + (split.rest > 0)
    pooled_strides = (0, 0, 0) if pooled is None else pooled.stride()[:3]
    arguments: dict[str, Any] = {"q": q, "k": k, **{name: lse if item is None else item for name, item in rows.items()}}
    arguments |= strides | dict(zip(("pooled_batch", "pooled_head", "pooled_row"), pooled_strides, strict=True))
    arguments |= {"heads": heads, "queries": queries, "keys": k.shape[2], "scale": scale, "sharpness": sharpness}
    arguments |= {"height": grid[0], "width": grid[1], "row_sums": results[2]}
    constants = aligned | {"SIZE": size, **split.constants(), "PARTS": parts, "PRECISION": dot_precision(q)}
    constants |= {"IN_FLOAT32": q.dtype != torch.bfloat16, "PRODUCT_PRECISION": _product_precision(q)}
    constants |= {"TERMS": rows["a"] is not None, "POOLED": pooled is not None, "LOCAL": rows["local"] is not None}
    constants |= {"SHARP": sharpness != 1, "EACH_KEY": grid == cells}
    constants |= {"WINDOW_ROWS": window[0], "WINDOW_COLUMNS": window[1]}
    # where each key is a cell, their number is no other kernel
    constants |= dict(zip(("CELL_ROWS", "CELL_COLUMNS"), (1, 1) if grid == cells else cells, strict=True))
    return [
        Launch(
            attention_gradient_kernel,
            batch * heads * triton.cdiv(result.shape[2], own) * parts,
            arguments | {"gradient": result},
            constants | {"OWN": own, "OTHER": other, "OF_KEYS": of_keys},
            warps,
            stages,
        )
        for of_keys, result in enumerate(results[:2])
    ]


def _product_precision(q: Tensor) -> str:
    """Float16, widened, is exact as TF32, and so are its products there."""
    return "tf32" if q.dtype == torch.float16 and torch.version.hip is None else dot_precision(q)


def _blocks(q: Tensor, gathers: bool) -> tuple[int, int, int, int]:
    """Tokens of the owner's and of the other side, warps and pipeline stages; places to gather from take registers.

    Chosen so that no kernel spills on any target.
    """
    size, capability = q.shape[3], compute_capability(q)
    if not is_low_precision(q):
        own = 32 if gathers or 40 < size <= 80 else 64
        if torch.version.hip is not None:  # with more warps each of their 64 lanes has less than 16 bytes to read
            return own, 32, own // 8, 1
        is_tf32 = dot_precision(q) == "tf32"
        if not gathers:
            few = {10: size > 64 if is_tf32 else size <= 40 or 64 < size <= 80, 12: 40 < size <= 64}
            return (32, 16, 8, 1) if few.get(capability) else (own, 32, 8, 1)
        if size <= 80:
            return own, 32, 8, 1
        return {8: (32, 16, 4 if is_tf32 else 8, 1), 10: (32, 16, 4, 1), 12: (32, 16, 4, 1)}.get(
            capability, (32, 32, 8, 1)
        )
    if torch.version.hip is not None:
        return 64, 32, 4, 2
    if not gathers:
        return 64, 64 if size <= 80 else 32, 4, 2
    return 64, 32, 4 if size <= {8: 48, 10: 0, 12: 48}.get(capability, 64) else 8, 2


def run(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    cell_lse: Tensor | None,
    c: Tensor | None,
    local: Tensor | None,
    pooled: Tensor | None,
    grid: list[int],
    window: list[int],
    cells: list[int],
    scale: float,
    sharpness: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and the sum of each row's gradients of scores; see ``_operators/attention/score_gradients.py``."""
    if grid != cells and max(side * count for side, count in zip(grid, cells, strict=True)) >= 2**31:
        raise ValueError(f"cells: expected side · cells below 2³¹, got {tuple(cells)} cells of a {tuple(grid)} grid")
    names = ("lse", "a", "b", "cell_lse", "c", "local")
    rows: dict[str, Tensor | None] = {
        name: None if item is None else item.contiguous()
        for name, item in zip(names, (lse, a, b, cell_lse, c, local), strict=True)
    }
    rows["pooled"] = pooled if pooled is None or pooled.stride(-1) == 1 else pooled.contiguous()
    grad_q, grad_k, row_sums = (torch.empty(item.shape, dtype=torch.float32, device=q.device) for item in (q, k, lse))
    for launch in plan(q, k, rows, grid, window, cells, scale, sharpness, (grad_q, grad_k, row_sums)):
        launch.run()
    return grad_q, grad_k, row_sums
