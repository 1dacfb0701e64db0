"""The affinity laid out for a walk: of each tile of tokens its window weights, tile × halo, and then its rows of U.

Every step multiplies the same weights, so where they lie is worked out once: a step reads blocks of them one after the
other, and beside each the block of P or of T that it multiplies, found by adding to an address. The layout says where
those are: P's tokens row by row within a margin of zeros, T below them in rows of the halo's width, label after label.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerve_kernels._triton.launch import Launch, dot_precision, matrix_strides

from .walk_step import Tiling, batch_stride, half_precision, label_block

MAX_PACKED_BYTES = 1 << 30  # and so 2²⁸ elements of a state at most
MIN_PACKED_STEPS = 3  # laying the weights out costs about as much as one step without
MAX_PACKED_SLOTS = 128  # tokens of a tile; more leave no registers beside two accumulators
ALIGN = 4  # elements of P that are copied at once: 16 bytes of float32


@triton.jit
def tile_tokens(
    slot, TILE_COLUMNS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, SLOTS: tl.constexpr
):
    """Where a tile's slots lie in it, and which of them are tokens."""
    block, position = slot // SLOTS, slot % SLOTS
    token_y = (block // TILE_COLUMNS) * BLOCK_ROWS + position // BLOCK_COLUMNS
    token_x = (block % TILE_COLUMNS) * BLOCK_COLUMNS + position % BLOCK_COLUMNS
    # Triton takes these sums, of multiples of a block's side and what is left over, for multiples as well, and would
    # test the mask of one token for two: say that they are multiples of 1
    return tl.multiple_of(token_y, 1), tl.multiple_of(token_x, 1), position < BLOCK_ROWS * BLOCK_COLUMNS


@triton.jit
def pack_affinity_kernel(
    values, u, packed,
    values_batch, u_batch, u_head, u_row, u_column, ranks, height, width, halo_blocks, blocks,
    U_ALIGN: tl.constexpr, SHORTEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, SLOTS: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr,
    WINDOW_ROWS: tl.constexpr, WINDOW_COLUMNS: tl.constexpr, HALO_COLUMNS: tl.constexpr, MARGIN: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """One block of one tile, slots × COLUMNS: of its halo, or of its rows of U."""
    tile_slots: tl.constexpr = TILE_ROWS * TILE_COLUMNS * SLOTS
    tiles_x = tl.cdiv(width, TILE_COLUMNS * BLOCK_COLUMNS)
    tiles = tl.cdiv(height, TILE_ROWS * BLOCK_ROWS) * tiles_x
    part = tl.program_id(0) % blocks
    tile = (tl.program_id(0) // blocks) % tiles
    batch = (tl.program_id(0) // (blocks * tiles)).to(tl.int64)
    top, left = (tile // tiles_x) * (TILE_ROWS * BLOCK_ROWS), (tile % tiles_x) * (TILE_COLUMNS * BLOCK_COLUMNS)
    slot, column = tl.arange(0, tile_slots), tl.arange(0, COLUMNS)
    token_y, token_x, is_token = tile_tokens(slot, TILE_COLUMNS, BLOCK_ROWS, BLOCK_COLUMNS, SLOTS)
    valid = is_token & (top + token_y < height) & (left + token_x < width)
    rows = (top + token_y).to(tl.int64) * width + left + token_x
    if part < halo_blocks:
        halo = part * COLUMNS + column
        halo_y, halo_x = halo // HALO_COLUMNS, halo % HALO_COLUMNS - (MARGIN - WINDOW_COLUMNS // 2)
        y, x = top + halo_y - WINDOW_ROWS // 2, left + halo_x - WINDOW_COLUMNS // 2
        window_y, window_x = halo_y[None, :] - token_y[:, None], halo_x[None, :] - token_x[:, None]
        in_window = (window_y >= 0) & (window_y < WINDOW_ROWS) & (window_x >= 0) & (window_x < WINDOW_COLUMNS)
        on_grid = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        at = rows[:, None] * (WINDOW_ROWS * WINDOW_COLUMNS) + window_y * WINDOW_COLUMNS + window_x
        mask = in_window & valid[:, None] & on_grid[None, :]
        weights = tl.load(values + batch * values_batch + at, mask=mask, other=0.0).to(packed.dtype.element_ty)
    else:
        rank = (part - halo_blocks) * COLUMNS + column.to(tl.int64)
        at = (rows * u_row * U_ALIGN)[:, None] + (rank * u_column)[None, :]
        mask = valid[:, None] & (rank < ranks)[None, :]
        weights = tl.load(u + batch * u_batch * U_ALIGN + at, mask=mask, other=0.0).to(packed.dtype.element_ty)
    if SHORTEN:
        # to 22 bits, ties to even, so that two TF32 terms hold them exactly
        bits = weights.to(tl.int32, bitcast=True)
        weights = ((bits + 1 + ((bits >> 2) & 1)) & -4).to(tl.float32, bitcast=True)
    out = packed + tl.program_id(0).to(tl.int64) * (tile_slots * COLUMNS)
    tl.store(out + slot[:, None] * COLUMNS + column[None, :], weights)


@dataclass(frozen=True)
class PackedLayout:
    """Where everything lies. ``window`` and ``cells`` are None where S has no such part."""

    grid: list[int]
    window: list[int] | None
    cells: list[int] | None
    tiling: Tiling
    columns: int  # of a block

    @functools.cached_property
    def tile(self) -> tuple[int, int]:
        """Tokens of a tile along y and x."""
        rows, columns = (self.tiling.block[side] * self.tiling.tile[side] for side in (0, 1))
        return rows, columns

    @functools.cached_property
    def tile_slots(self) -> int:
        """Slots of a tile."""
        return math.prod(self.tiling.tile) * self.tiling.slots

    @functools.cached_property
    def reach(self) -> tuple[int, int]:
        """Tokens that the window reaches to a side."""
        return (0, 0) if self.window is None else (self.window[0] // 2, self.window[1] // 2)

    @functools.cached_property
    def margin(self) -> int:
        """Zeros left of the grid: as many as the window reaches, and up to a multiple of what is copied at once."""
        return -(-self.reach[1] // ALIGN) * ALIGN

    @functools.cached_property
    def halo_columns(self) -> int:
        """Width of tile and halo, a power of two."""
        return max(8, triton.next_power_of_2(self.margin + self.tile[1] + self.reach[1]))

    @functools.cached_property
    def halo_rows(self) -> int:
        """Height of tile and halo, in whole blocks."""
        at_once = max(1, self.columns // self.halo_columns)
        return -(-(self.tile[0] + 2 * self.reach[0]) // at_once) * at_once

    @functools.cached_property
    def halo_blocks(self) -> int:
        """Blocks of window weights."""
        return 0 if self.window is None else self.halo_rows * self.halo_columns // self.columns

    @functools.cached_property
    def ranks(self) -> int:
        """Columns of U."""
        return 0 if self.cells is None else math.prod(self.cells)

    @functools.cached_property
    def blocks(self) -> int:
        """Blocks of a tile."""
        return self.halo_blocks + triton.cdiv(self.ranks, self.columns)

    @functools.cached_property
    def pitch(self) -> int:
        """Elements from one row of P to the next."""
        tiles_x = triton.cdiv(self.grid[1], self.tile[1])
        return (tiles_x - 1) * self.tile[1] + self.halo_columns

    @functools.cached_property
    def grid_rows(self) -> int:
        """Rows of P with its margins; T begins below them."""
        return (triton.cdiv(self.grid[0], self.tile[0]) - 1) * self.tile[0] + self.halo_rows

    @functools.cached_property
    def plane(self) -> int:
        """Elements of one label: P, and T below it."""
        ranks = (self.blocks - self.halo_blocks) * self.columns
        return (self.grid_rows + triton.cdiv(ranks, self.halo_columns)) * self.pitch

    def constants(self) -> dict[str, int]:
        """As the kernels name them."""
        return (
            {"BLOCK_ROWS": self.tiling.block[0], "BLOCK_COLUMNS": self.tiling.block[1], "SLOTS": self.tiling.slots}
            | {"TILE_ROWS": self.tiling.tile[0], "TILE_COLUMNS": self.tiling.tile[1]}
            | {"HALO_COLUMNS": self.halo_columns, "MARGIN": self.margin, "COLUMNS": self.columns}
        )


@dataclass(frozen=True)
class Terms:
    """How weights multiply P: ``mode`` as the kernels name it, and how many terms P is stored in.

    bfloat16 weights take two bfloat16 terms of P, 16 bits of it. float16 weights are TF32 numbers, and take two TF32
    terms, 22 bits. float32 weights are two TF32 terms themselves: three products of four, the fourth is below the last
    bit. Where torch may take TF32 for float32 one product is all, and AMD multiplies float32 as it is.
    """

    mode: str
    weights: torch.dtype

    @classmethod
    def of(cls, parts: list[Tensor], p: Tensor) -> Terms:
        """For parts of one affinity; widened where they differ."""
        kinds = {part.dtype for part in parts}
        dtype = kinds.pop() if len(kinds) == 1 else torch.float32
        if dtype == torch.bfloat16:
            return cls("bf16", dtype)
        if half_precision() == "ieee":
            return cls("ieee", dtype)
        if dtype == torch.float16:
            return cls("fp16", dtype)
        return cls("tf32" if dot_precision(p) == "tf32" else "tf32x3", dtype)

    @property
    def planes(self) -> int:
        """Terms of P."""
        return 1 if self.mode in ("tf32", "ieee") else 2

    @property
    def state(self) -> torch.dtype:
        """What P's terms are stored in."""
        return torch.bfloat16 if self.mode == "bf16" else torch.float32

    @property
    def columns(self) -> int:
        """Columns of a block: 128 bytes of P."""
        return 64 if self.mode == "bf16" else 32


def packed_tiling(grid: list[int], cell: tuple[int, int] | None) -> Tiling:
    """Tiles of 64 tokens, the rows of one product on a warp group; of whole cells where ``cell`` is their size."""
    if cell is not None:
        return Tiling.of_blocks(cell, 64)
    rows = min(8, triton.next_power_of_2(grid[0]))
    return Tiling((rows, 64 // rows), (1, 1))


def packed_layout(
    p: Tensor,
    grid: list[int],
    window: list[int] | None,
    cells: list[int] | None,
    cell: tuple[int, int] | None,
    terms: Terms,
    batches: int,
    steps: int,
) -> PackedLayout | None:
    """The layout of a walk's affinity, or None where the walk takes it as it is.

    As it is: where cells are uneven or hold over 128 tokens, or a tile of whole cells is no multiple of 4 tokens wide;
    a walk of fewer than three steps; and where the layout, ``batches`` × (tokens and what fills up tiles) × (ranks +
    tile and halo) weights in the dtype they are stored in, and two states of P, would take over 1 GiB.
    """
    if steps < MIN_PACKED_STEPS or (cells is not None and cell is None):
        return None
    layout = PackedLayout(grid, window, cells, packed_tiling(grid, cell), terms.columns)
    if layout.tile[1] % ALIGN or layout.tile_slots > MAX_PACKED_SLOTS:
        return None
    weights = batches * layout.tiling.tiles(grid) * layout.blocks * layout.tile_slots * layout.columns
    labels = triton.cdiv(p.shape[2], label_block(p.shape[2])) * label_block(p.shape[2])
    state = p.shape[0] * labels * layout.plane * terms.planes
    if weights * terms.weights.itemsize + 2 * state * terms.state.itemsize > MAX_PACKED_BYTES:
        return None
    return layout


def plan_packing(values: Tensor | None, u: Tensor | None, layout: PackedLayout, packed: Tensor, terms: Terms) -> Launch:
    """The launch that writes ``packed``, (B or 1, tiles, blocks, slots, columns), contiguous."""
    batch, tiles = packed.shape[:2]
    spare = packed  # for what is not read
    strides, aligned = matrix_strides(u=(spare[:, 0, 0] if u is None else u).unsqueeze(1))
    window = [1, 1] if layout.window is None else layout.window
    return Launch(
        pack_affinity_kernel,
        batch * tiles * layout.blocks,
        {"values": spare if values is None else values, "u": spare if u is None else u, "packed": packed}
        | {"values_batch": 0 if values is None else batch_stride(values)}
        | {**strides, "u_batch": 0 if u is None or u.shape[0] == 1 else strides["u_batch"]}
        | {"ranks": layout.ranks, "height": layout.grid[0], "width": layout.grid[1]}
        | {"halo_blocks": layout.halo_blocks, "blocks": layout.blocks},
        aligned
        | {"SHORTEN": terms.mode == "tf32x3"}
        | layout.constants()
        | {"WINDOW_ROWS": window[0], "WINDOW_COLUMNS": window[1]},
        4,
        1,
    )
