"""One step of the walk on a packed affinity: a batched product, tile by tile, without addresses to work out.

P and T are kept as the products take them: label after label, in the terms that tensor cores multiply exactly, so that
a step splits its weights at most. Tensor cores cut their sums short, towards zero: each block's sum is added to the
total by itself, in float32, so that no sum of theirs is longer than a block.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from nerve_kernels._triton.launch import Launch

from .packing import ALIGN, PackedLayout, Terms, tile_tokens
from .walk_step import batch_stride, label_block

UNIT: tl.constexpr = tl.constexpr(ALIGN)


@triton.jit
def rounded_tf32(x):
    """To 11 bits, the nearest."""
    return ((x.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def store_terms(x, plane, value, mask, MODE: tl.constexpr):
    """One value as one term or two, a plane apart."""
    if MODE == "bf16":
        high = value.to(tl.bfloat16)
        tl.store(x, high, mask=mask)
        tl.store(x + plane, (value - high.to(tl.float32)).to(tl.bfloat16), mask=mask)
    elif MODE == "fp16" or MODE == "tf32x3":
        high = rounded_tf32(value)
        tl.store(x, high, mask=mask)
        tl.store(x + plane, rounded_tf32(value - high), mask=mask)
    else:
        tl.store(x, value, mask=mask)


@triton.jit
def block_product(weights, high, low, MODE: tl.constexpr):
    """weights · (high + low), the smaller terms first; ``low`` is ``high`` where there is one term."""
    if MODE == "bf16":
        total = tl.dot(weights, low)
        total = tl.dot(weights, high, total)
    elif MODE == "fp16":
        weights = weights.to(tl.float32)
        total = tl.dot(weights, low, input_precision="tf32")
        total = tl.dot(weights, high, total, input_precision="tf32")
    elif MODE == "tf32x3":
        weights_high = (weights.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)  # 13 low bits cleared
        total = tl.dot(weights - weights_high, high, input_precision="tf32")
        total = tl.dot(weights_high, low, total, input_precision="tf32")
        total = tl.dot(weights_high, high, total, input_precision="tf32")
    else:
        total = tl.dot(weights.to(tl.float32), high, input_precision=MODE)
    return total


@triton.jit
def write_state(
    total, x, plane, label_at, valid, token_y, token_x, top, left, grid_rows, pitch, height, width,
    MODE: tl.constexpr, LOCAL: tl.constexpr, POOL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, SLOTS: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr, LABELS: tl.constexpr,
    WINDOW_ROWS: tl.constexpr, HALO_COLUMNS: tl.constexpr, MARGIN: tl.constexpr,
):  # fmt: skip
    """P of a tile and the averages of its cells, as the next step reads them.

    A packed state is small (MAX_PACKED_BYTES), and 32 bits reach all of it: as many addresses in 64 would not fit into
    the registers beside the sums.
    """
    if LOCAL:
        at = ((top + token_y + WINDOW_ROWS // 2) * pitch + left + token_x + MARGIN)[:, None] + label_at[None, :]
        store_terms(x + at, plane, total, valid[:, None], MODE)
    if POOL:
        shaped = tl.reshape(tl.where(valid[:, None], total, 0.0), [TILE_ROWS * TILE_COLUMNS, SLOTS, LABELS])
        average = tl.sum(shaped, 1) / (BLOCK_ROWS * BLOCK_COLUMNS)
        block = tl.arange(0, TILE_ROWS * TILE_COLUMNS)
        cell_y = top // BLOCK_ROWS + block // TILE_COLUMNS
        cell_x = left // BLOCK_COLUMNS + block % TILE_COLUMNS
        cell_columns = width // BLOCK_COLUMNS
        cell = cell_y * cell_columns + cell_x
        at = ((grid_rows + cell // HALO_COLUMNS) * pitch + cell % HALO_COLUMNS)[:, None] + label_at[None, :]
        inside = (cell_x < cell_columns) & (cell_y < height // BLOCK_ROWS)
        store_terms(x + at, plane, average, inside[:, None], MODE)


@triton.jit
def packed_step_kernel(
    packed, x, restart, x_out, out,
    packed_batch, labels, height, width, halo_blocks, blocks, plane_units, pitch_units, grid_rows,
    restart_share, global_share, local_share,
    MODE: tl.constexpr, PLANES: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, NORMALIZE: tl.constexpr,
    LOCAL: tl.constexpr, POOL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, SLOTS: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr, LABELS: tl.constexpr,
    WINDOW_ROWS: tl.constexpr, HALO_COLUMNS: tl.constexpr, MARGIN: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """With FIRST no step but its preparation: ``x`` are the seeds, whose state and share of every step it writes.

    With LAST the result goes to ``out`` (B, N, C), and no state is written.
    """
    tile_slots: tl.constexpr = TILE_ROWS * TILE_COLUMNS * SLOTS
    label_blocks = tl.cdiv(labels, LABELS)
    tiles_x = tl.cdiv(width, TILE_COLUMNS * BLOCK_COLUMNS)
    tiles = tl.cdiv(height, TILE_ROWS * BLOCK_ROWS) * tiles_x
    tile = (tl.program_id(0) // label_blocks) % tiles
    batch = (tl.program_id(0) // (label_blocks * tiles)).to(tl.int64)
    top, left = (tile // tiles_x) * (TILE_ROWS * BLOCK_ROWS), (tile % tiles_x) * (TILE_COLUMNS * BLOCK_COLUMNS)
    first_label = (tl.program_id(0) % label_blocks) * LABELS
    pitch, label_stride = pitch_units * UNIT, plane_units * UNIT
    plane = label_stride.to(tl.int64) * (label_blocks * LABELS)
    state = batch * plane * PLANES + first_label.to(tl.int64) * label_stride

    slot, label = tl.arange(0, tile_slots), tl.arange(0, LABELS)
    token_y, token_x, is_token = tile_tokens(slot, TILE_COLUMNS, BLOCK_ROWS, BLOCK_COLUMNS, SLOTS)
    valid = is_token & (top + token_y < height) & (left + token_x < width)
    mask = valid[:, None] & (first_label + label < labels)[None, :]
    rows = (batch * height + top + token_y) * width + left + token_x
    plain = rows[:, None] * labels + first_label + label[None, :]
    # of each label, tile after tile
    restart += (batch * (label_blocks * LABELS) + first_label) * (tiles * tile_slots) + tile * tile_slots
    restart_at = label[None, :].to(tl.int64) * (tiles * tile_slots) + slot[:, None]

    if FIRST:
        total = tl.load(x + plain, mask=mask, other=0.0).to(tl.float32)
        tl.store(restart + restart_at, restart_share * total)
    else:
        column = tl.arange(0, COLUMNS)
        weights_at = packed + batch * packed_batch + tile.to(tl.int64) * blocks * (tile_slots * COLUMNS)
        weights_at += slot[:, None] * COLUMNS + column[None, :]
        within = (column // HALO_COLUMNS) * pitch + column % HALO_COLUMNS
        x_at = x + state + label[:, None].to(tl.int64) * label_stride + within[None, :]
        halo = top * pitch + left
        total = tl.load(restart + restart_at)
        for part in range(blocks):
            if COLUMNS >= HALO_COLUMNS:
                down: tl.constexpr = COLUMNS // HALO_COLUMNS
                along = part * (down * pitch)
                below = (grid_rows - halo_blocks * down) * pitch
            else:
                pieces: tl.constexpr = HALO_COLUMNS // COLUMNS
                along = (part // pieces) * pitch + (part % pieces) * COLUMNS
                below = (grid_rows - halo_blocks // pieces) * pitch
            offset = tl.multiple_of(tl.where(part < halo_blocks, halo, below) + along, UNIT)
            share = tl.where(part < halo_blocks, local_share, global_share)
            weights = tl.load(weights_at)
            weights_at += tile_slots * COLUMNS
            high = tl.trans(tl.load(x_at + offset))
            low = high
            if PLANES == 2:
                low = tl.trans(tl.load(x_at + offset + plane))
            total += share * block_product(weights, high, low, MODE)
    if LAST:
        if NORMALIZE:
            mass = tl.sum(total, 1)[:, None]
            total = total / tl.where(mass == 0, 1.0, mass)
        tl.store(out + plain, total.to(out.dtype.element_ty), mask=mask)
    else:
        write_state(
            total, x_out + state, plane, label * label_stride, valid, token_y, token_x, top, left,
            grid_rows, pitch, height, width, MODE, LOCAL, POOL, BLOCK_ROWS, BLOCK_COLUMNS, SLOTS,
            TILE_ROWS, TILE_COLUMNS, LABELS, WINDOW_ROWS, HALO_COLUMNS, MARGIN,
        )  # fmt: skip


@dataclass(frozen=True)
class PackedStep:
    """What every step shares. ``packed`` is as ``plan_packing`` writes it; shares are those of restart, U T, window."""

    layout: PackedLayout
    terms: Terms
    shares: tuple[float, float, float]
    packed: Tensor
    batch: int
    labels: int

    @functools.cached_property
    def padded_labels(self) -> int:
        """Labels of all programs."""
        return triton.cdiv(self.labels, label_block(self.labels)) * label_block(self.labels)

    def state_size(self) -> tuple[int, ...]:
        """Of a state, which begins as zeros."""
        return self.batch, self.terms.planes, self.padded_labels, self.layout.plane

    def restart_size(self) -> tuple[int, ...]:
        """Of the seeds' share of every step."""
        tiles = self.layout.tiling.tiles(self.layout.grid)
        return self.batch, self.padded_labels, tiles, self.layout.tile_slots

    def plan(
        self, x: Tensor, restart: Tensor, x_out: Tensor, out: Tensor, *, part: str = "", normalize: bool = False
    ) -> Launch:
        """The launch of a step, of the "first", which prepares ``restart`` and the state of seeds, or of the "last"."""
        layout, block = self.layout, label_block(self.labels)
        window = [1, 1] if layout.window is None else layout.window
        constants = {
            "MODE": self.terms.mode, "PLANES": self.terms.planes, "FIRST": part == "first", "LAST": part == "last",
            "NORMALIZE": normalize, "LOCAL": layout.window is not None, "POOL": layout.cells is not None,
            "WINDOW_ROWS": window[0], "LABELS": block,
        }  # fmt: skip
        return Launch(
            packed_step_kernel,
            self.batch * layout.tiling.tiles(layout.grid) * (self.padded_labels // block),
            {"packed": self.packed, "x": x, "restart": restart, "x_out": x_out, "out": out}
            | {"packed_batch": batch_stride(self.packed), "labels": self.labels}
            | {"height": layout.grid[0], "width": layout.grid[1]}
            | {"halo_blocks": layout.halo_blocks, "blocks": layout.blocks, "plane_units": layout.plane // ALIGN}
            | {"pitch_units": layout.pitch // ALIGN, "grid_rows": layout.grid_rows}
            | dict(zip(("restart_share", "global_share", "local_share"), self.shares, strict=True)),
            layout.constants() | constants,
            8 if layout.tile_slots > 64 else 4,
            3,
        )
