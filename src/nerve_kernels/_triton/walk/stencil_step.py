"""P' = a · base + share · S_local P on a stencil, and with S_localᵀ: each token gathers what its offsets lead to.

A packed tile would hold the whole square that the widest dilation spans; here a program reads only the places there
are. It holds a tile of tokens × all labels, or 64 of them, so that weights are read once. Where the border repeats the
edge, Sᵀ is taken on a grid with a margin as wide as the stencil, and the margin is then folded onto the edge, first
along y and then along x: every token's sum is one program's, in one order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerve_kernels._arguments import AffinityArguments
from nerve_kernels._triton.launch import Launch, Launches
from nerve_kernels.grids import stencil_reach

from .rows import label_block, normalized, row_layout, row_places
from .walk_step import PROGRAMS_TO_FILL_A_GPU, batch_stride

ACCUMULATORS = 4096
"""Tokens × labels of a program: 16 in each of 256 threads, which leaves registers for loads under way."""
FOLDED = 1024
"""Elements of a program that folds a margin."""


@triton.jit
def gather_places(
    total, p_base, values_base, values_column, values_row, p_pitch, p_label, y, x, valid,
    dilation, places, height, width,
    INSIDE: tl.constexpr, CLAMP: tl.constexpr, TRANSPOSED: tl.constexpr, CENTRE: tl.constexpr,
    WINDOW_ROWS: tl.constexpr, WINDOW_COLUMNS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """``total`` with what one dilation adds, and where the values of the next begin.

    With INSIDE none of its places is beyond the border: each is a shift.
    """
    half: tl.constexpr = WINDOW_ROWS * WINDOW_COLUMNS // 2
    rows = y.to(tl.int64) * width + x
    own_p = p_base + (rows * p_pitch)[:, None] + p_label[None, :]
    own_values = values_base + rows * values_row
    for index in tl.range(0, places, loop_unroll_factor=UNROLL):
        place = index
        if not CENTRE:
            place += index // half  # past the one that is left out
        dy = dilation * (place // WINDOW_COLUMNS - WINDOW_ROWS // 2)
        dx = dilation * (place % WINDOW_COLUMNS - WINDOW_COLUMNS // 2)
        if TRANSPOSED:
            dy, dx = -dy, -dx
        if INSIDE:
            shift = (dy * width + dx).to(tl.int64)
            weight = tl.load(own_values + (shift * values_row if TRANSPOSED else 0))
            neighbour = tl.load(own_p + shift * p_pitch)
        else:
            from_y, from_x = y + dy, x + dx
            if CLAMP and not TRANSPOSED:
                from_y = tl.minimum(tl.maximum(from_y, 0), height - 1)
                from_x = tl.minimum(tl.maximum(from_x, 0), width - 1)
                there = valid
            else:
                there = valid & (from_y >= 0) & (from_y < height) & (from_x >= 0) & (from_x < width)
            source = from_y.to(tl.int64) * width + from_x
            row = source if TRANSPOSED else rows
            weight = tl.load(values_base + row * values_row, mask=there, other=0.0)
            neighbour = tl.load(p_base + (source * p_pitch)[:, None] + p_label[None, :], mask=there[:, None], other=0.0)
        total += weight.to(tl.float32)[:, None] * neighbour.to(tl.float32)
        values_base += values_column
        own_values += values_column
    return total, values_base


@triton.jit
def stencil_step_kernel(
    p, base, values, dilations, out,
    p_batch, p_units, base_batch, base_units, out_batch, out_units, values_batch, values_row, values_column,
    labels, height, width, margin_rows, margin_columns, dilation_count, places, base_share, local_share,
    P_ALIGN: tl.constexpr, BASE_ALIGN: tl.constexpr, OUT_ALIGN: tl.constexpr,
    BASE: tl.constexpr, CLAMP: tl.constexpr, TRANSPOSED: tl.constexpr, NORMALIZE: tl.constexpr,
    CENTRE: tl.constexpr, WINDOW_ROWS: tl.constexpr, WINDOW_COLUMNS: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr, LABELS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """``out`` is on a grid with a margin of so many rows and columns on each side, which is 0 but for folding."""
    p_pitch, out_pitch = p_units * P_ALIGN, out_units * OUT_ALIGN
    out_height, out_width = height + 2 * margin_rows, width + 2 * margin_columns
    label_blocks = tl.cdiv(out_pitch, LABELS)
    tiles_x = tl.cdiv(out_width, TILE_COLUMNS)
    tiles = tl.cdiv(out_height, TILE_ROWS) * tiles_x
    tile = (tl.program_id(0) // label_blocks) % tiles
    batch = (tl.program_id(0) // (label_blocks * tiles)).to(tl.int64)
    label = (tl.program_id(0) % label_blocks) * LABELS + tl.arange(0, LABELS)
    token = tl.arange(0, TILE_ROWS * TILE_COLUMNS)
    out_top, out_left = (tile // tiles_x) * TILE_ROWS, (tile % tiles_x) * TILE_COLUMNS
    out_y, out_x = out_top + token // TILE_COLUMNS, out_left + token % TILE_COLUMNS
    valid = (out_y < out_height) & (out_x < out_width)
    top, left = out_top - margin_rows, out_left - margin_columns
    y, x = top + token // TILE_COLUMNS, left + token % TILE_COLUMNS

    p_base, values_base = p + batch * p_batch, values + batch * values_batch
    p_label = row_places(label, p_units, P_ALIGN)
    total = tl.zeros([TILE_ROWS * TILE_COLUMNS, LABELS], tl.float32)
    for number in range(dilation_count):
        dilation = tl.load(dilations + number)
        reach_y, reach_x = dilation * (WINDOW_ROWS // 2), dilation * (WINDOW_COLUMNS // 2)
        inside = (top >= reach_y) & (top + TILE_ROWS + reach_y <= height)
        inside = inside & (left >= reach_x) & (left + TILE_COLUMNS + reach_x <= width)
        if inside:
            total, values_base = gather_places(
                total, p_base, values_base, values_column, values_row, p_pitch, p_label, y, x, valid,
                dilation, places, height, width, True, CLAMP, TRANSPOSED, CENTRE, WINDOW_ROWS, WINDOW_COLUMNS, UNROLL,
            )  # fmt: skip
        else:
            total, values_base = gather_places(
                total, p_base, values_base, values_column, values_row, p_pitch, p_label, y, x, valid,
                dilation, places, height, width, False, CLAMP, TRANSPOSED, CENTRE, WINDOW_ROWS, WINDOW_COLUMNS, 1,
            )  # fmt: skip
    total = tl.where((label < labels)[None, :], total * local_share, 0.0)
    rows = out_y.to(tl.int64) * out_width + out_x
    if BASE:
        at = base + batch * base_batch + (rows * base_units * BASE_ALIGN)[:, None] + label[None, :]
        total += base_share * tl.load(at, mask=valid[:, None] & (label < labels)[None, :], other=0.0).to(tl.float32)
    if NORMALIZE:
        total = normalized(total)
    at = out + batch * out_batch + (rows * out_pitch)[:, None] + label[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=valid[:, None] & (label < out_pitch)[None, :])


@triton.jit
def fold_margin_kernel(padded, out, elements, side, margin, inner, ELEMENTS: tl.constexpr):
    """``padded`` (outer, side + 2 · margin, inner) into ``out`` (outer, side, inner): the first and the last position
    take what lies beyond them."""
    element = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    valid = element < elements
    position = (element // inner) % side
    first = tl.where(position == 0, 0, position + margin)
    last = tl.where(position == side - 1, side + 2 * margin - 1, position + margin)
    base = padded + (element // inner // side) * (side + 2 * margin) * inner + element % inner
    total = tl.zeros([ELEMENTS], tl.float32)
    for step in range(tl.max(last - first) + 1):
        total += tl.load(base + (first + step) * inner, mask=valid & (first + step <= last), other=0.0)
    tl.store(out + element, total, mask=valid)


@dataclass(frozen=True)
class StencilStep:
    """S_local on a stencil, or its transpose; ``values`` (B or 1, N, K) with any strides."""

    affinity: AffinityArguments
    values: Tensor
    dilations: Tensor
    transposed: bool = False

    @classmethod
    def of(cls, affinity: AffinityArguments) -> StencilStep:
        """That of an affinity; nothing is copied to the device, so that a CUDA graph can hold it."""
        assert affinity.values is not None
        dilations = torch.empty(len(affinity.dilations), dtype=torch.int32, device=affinity.values.device)
        for number, dilation in enumerate(affinity.dilations):
            dilations[number].fill_(dilation)
        return cls(affinity, affinity.values, dilations)

    def transpose(self) -> StencilStep:
        """Sᵀ."""
        return replace(self, transposed=not self.transposed)

    def plan(
        self, p: Tensor, base: Tensor | None, out: Tensor, base_share: float, share: float, *, normalize: bool = False
    ) -> Launches:
        """The launches that write ``out`` = base_share · ``base`` + share · S_local ``p``; all (B, N, C).

        Rows of ``p`` and ``out`` may be longer than C: what fills them up is carried along.
        """
        reach = stencil_reach(self.affinity.offsets())
        if not (self.transposed and self.affinity.clamp and max(reach)):
            shares = (base_share, share)
            return Launches((self._gather(p, base, out, shares, normalize, (0, 0)), ("p", "out")))
        assert base is None
        (height, width), labels = self.affinity.grid, out.shape[2]
        padded_width = width + 2 * reach[1]
        new = (out.shape[0], (height + 2 * reach[0]) * padded_width, labels)
        padded = torch.empty(new, dtype=torch.float32, device=out.device)
        half = torch.empty((out.shape[0], height * padded_width, labels), dtype=torch.float32, device=out.device)
        return Launches(
            (self._gather(p, None, padded, (0.0, share), False, reach), ("p",)),
            (plan_fold(padded, half, height, reach[0], padded_width * labels), ()),
            (plan_fold(half, out, width, reach[1], labels), ("out",)),
        )

    def _gather(
        self,
        p: Tensor,
        base: Tensor | None,
        out: Tensor,
        shares: tuple[float, float],
        normalize: bool,
        margin: tuple[int, int],
    ) -> Launch:
        affinity, values = self.affinity, self.values
        batch, (height, width) = out.shape[0], affinity.grid
        rows, columns, block = tile_of((height + 2 * margin[0], width + 2 * margin[1]), batch, out.stride(1))
        tiles = triton.cdiv(height + 2 * margin[0], rows) * triton.cdiv(width + 2 * margin[1], columns)
        layouts, aligned = row_layout(p=p, base=p if base is None else base, out=out)
        return Launch(
            stencil_step_kernel,
            batch * tiles * triton.cdiv(out.stride(1), block),
            {"p": p, "base": p if base is None else base, "values": values, "dilations": self.dilations, "out": out}
            | layouts
            | {"values_batch": batch_stride(values), "values_row": values.stride(1), "values_column": values.stride(2)}
            | {"labels": out.shape[2], "height": height, "width": width}
            | {"margin_rows": margin[0], "margin_columns": margin[1], "dilation_count": len(affinity.dilations)}
            | {"places": values.shape[2] // len(affinity.dilations)}  # as an argument: unrolled whole, they spill
            | {"base_share": shares[0], "local_share": shares[1]},
            aligned
            | {"BASE": base is not None, "CLAMP": affinity.clamp, "TRANSPOSED": self.transposed}
            | {"NORMALIZE": normalize, "CENTRE": affinity.centre}
            | {"WINDOW_ROWS": affinity.window[0], "WINDOW_COLUMNS": affinity.window[1]}
            | {
                "TILE_ROWS": rows,
                "TILE_COLUMNS": columns,
                "LABELS": block,
                "UNROLL": min(4, aligned["P_ALIGN"]),
            },
            # addresses of single labels take more registers than those of four
            max(1, rows * columns * block // (512 if aligned["P_ALIGN"] >= 4 else 256)),
            1,
        )


def tile_of(grid: tuple[int, int], batch: int, pitch: int) -> tuple[int, int, int]:
    """Rows and columns of a tile of tokens, and labels of a block. Twice as wide as high: values lie along rows."""
    block = label_block(pitch)
    tokens = ACCUMULATORS // block
    while tokens > 32 and batch * math.prod(grid) * triton.cdiv(pitch, block) < 2 * PROGRAMS_TO_FILL_A_GPU * tokens:
        tokens //= 2
    rows = min(1 << (tokens.bit_length() - 1) // 2, triton.next_power_of_2(grid[0]))
    columns = min(tokens // rows, triton.next_power_of_2(grid[1]))
    return tokens // columns, columns, block


def plan_fold(padded: Tensor, out: Tensor, side: int, margin: int, inner: int) -> Launch:
    """The launch that folds one dimension; both contiguous float32."""
    elements = out.numel()
    return Launch(
        fold_margin_kernel,
        triton.cdiv(elements, FOLDED),
        {"padded": padded, "out": out, "elements": elements, "side": side, "margin": margin, "inner": inner},
        {"ELEMENTS": FOLDED},
        4,
        1,
    )
