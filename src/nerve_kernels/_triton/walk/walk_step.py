"""One step of the walk, P' = (1−α) G + αβ U T + α(1−β) S_local P, on a tile of tokens and a block of labels.

Both products are dots: U's rows times T, and the window values of the tile, laid out tile × halo as they are loaded,
times P on the halo. So each program reads its halo of P once, where a loop over the window's k² offsets would read the
tile k² times. Where a tile covers whole cells, the same program also writes their averages for the next step. Nothing
is added by two programs, so results are the same bits in every run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerve_kernels._triton.launch import (
    VECTOR_BYTES,
    Launch,
    compute_capability,
    dot_precision,
    is_low_precision,
    matrix_strides,
)

MAX_LABELS = 64  # of a block; accumulators of more would leave no registers
MAX_SLOTS = 256  # tokens of a tile, likewise
PROGRAMS_TO_FILL_A_GPU = 132  # with fewer, smaller tiles keep more of it busy


@triton.jit
def float32_dot(weights, p, total, PRECISION: tl.constexpr, HALF_PRECISION: tl.constexpr):
    """weights · p + total on tensor cores where weights are stored in 16 bits, without giving up P's precision.

    P is float32 and is split into two terms that the tensor cores take exactly: bfloat16 weights times two bfloat16
    terms keep 16 bits of P; float16 weights are TF32 numbers as they are, times two TF32 terms they keep 21 bits.
    """
    if weights.dtype == tl.bfloat16:
        high = p.to(tl.bfloat16)
        low = (p - high.to(tl.float32)).to(tl.bfloat16)
        total = tl.dot(weights, low, total)
        total = tl.dot(weights, high, total)
    elif weights.dtype == tl.float16:
        if HALF_PRECISION == "tf32":
            high = (p.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)  # 13 low bits cleared
            total = tl.dot(weights.to(tl.float32), p - high, total, input_precision="tf32")
            total = tl.dot(weights.to(tl.float32), high, total, input_precision="tf32")
        else:
            total = tl.dot(weights.to(tl.float32), p, total, input_precision="ieee")
    else:
        total = tl.dot(weights, p, total, input_precision=PRECISION)
    return total


@triton.jit
def walk_step_kernel(
    p, seeds, u, pooled, values, out, pooled_out,
    p_batch, pooled_batch, values_batch, u_batch, u_head, u_row, u_column,
    label_units, ranks, height, width, cell_rows, cell_columns, restart_share, global_share, local_share,
    U_ALIGN: tl.constexpr, LABEL_ALIGN: tl.constexpr, PRECISION: tl.constexpr, HALF_PRECISION: tl.constexpr,
    RESTART: tl.constexpr, GLOBAL: tl.constexpr, LOCAL: tl.constexpr, TRANSPOSED: tl.constexpr,
    POOL: tl.constexpr, NORMALIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, SLOTS: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr, LABELS: tl.constexpr,
    WINDOW_ROWS: tl.constexpr, WINDOW_COLUMNS: tl.constexpr, HALO: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    """A tile is TILE_ROWS × TILE_COLUMNS blocks of BLOCK_ROWS × BLOCK_COLUMNS tokens, each given SLOTS slots.

    GLOBAL is "product" for U T; "spread" for V T, which is T's row of the token's cell over the cell's size; or "".
    TRANSPOSED takes S_localᵀ instead of S_local. With POOL, blocks are the cells.
    """
    labels = label_units * LABEL_ALIGN
    label_blocks = tl.cdiv(labels, LABELS)
    tiles_x = tl.cdiv(width, TILE_COLUMNS * BLOCK_COLUMNS)
    tiles = tl.cdiv(height, TILE_ROWS * BLOCK_ROWS) * tiles_x
    tile = (tl.program_id(0) // label_blocks) % tiles
    batch = (tl.program_id(0) // (label_blocks * tiles)).to(tl.int64)
    top, left = (tile // tiles_x) * (TILE_ROWS * BLOCK_ROWS), (tile % tiles_x) * (TILE_COLUMNS * BLOCK_COLUMNS)
    label = (tl.program_id(0) % label_blocks) * LABELS + tl.arange(0, LABELS)
    label_valid = (label < labels)[None, :]

    slot = tl.arange(0, TILE_ROWS * TILE_COLUMNS * SLOTS)
    block, position = slot // SLOTS, slot % SLOTS
    token_y = (block // TILE_COLUMNS) * BLOCK_ROWS + position // BLOCK_COLUMNS
    token_x = (block % TILE_COLUMNS) * BLOCK_COLUMNS + position % BLOCK_COLUMNS
    # Triton takes these sums, of multiples of a block's side and what is left over, for multiples as well, and would
    # test the mask of one token for two: say that they are multiples of 1
    token_y, token_x = tl.multiple_of(token_y, 1), tl.multiple_of(token_x, 1)
    valid = (position < BLOCK_ROWS * BLOCK_COLUMNS) & (top + token_y < height) & (left + token_x < width)
    rows = (top + token_y).to(tl.int64) * width + left + token_x

    total = tl.zeros([TILE_ROWS * TILE_COLUMNS * SLOTS, LABELS], tl.float32)
    if LOCAL:
        halo_columns: tl.constexpr = TILE_COLUMNS * BLOCK_COLUMNS + WINDOW_COLUMNS - 1
        reached: tl.constexpr = (TILE_ROWS * BLOCK_ROWS + WINDOW_ROWS - 1) * halo_columns
        length: tl.constexpr = WINDOW_ROWS * WINDOW_COLUMNS
        p_base = p + batch * p_batch
        values_base = values + batch * values_batch
        for start in range(0, reached, HALO):
            halo = start + tl.arange(0, HALO)
            halo_y, halo_x = halo // halo_columns, halo % halo_columns
            y, x = top + halo_y - WINDOW_ROWS // 2, left + halo_x - WINDOW_COLUMNS // 2
            halo_valid = (halo < reached) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
            halo_rows = y.to(tl.int64) * width + x
            window_y, window_x = halo_y[None, :] - token_y[:, None], halo_x[None, :] - token_x[:, None]
            in_window = (window_y >= 0) & (window_y < WINDOW_ROWS) & (window_x >= 0) & (window_x < WINDOW_COLUMNS)
            column = window_y * WINDOW_COLUMNS + window_x
            if TRANSPOSED:
                at = halo_rows[None, :] * length + (length - 1 - column)
            else:
                at = rows[:, None] * length + column
            mask = in_window & valid[:, None] & halo_valid[None, :]
            weights = tl.load(values_base + at, mask=mask, other=0.0)
            halo_p = tl.load(
                p_base + halo_rows[:, None] * labels + label[None, :], mask=halo_valid[:, None] & label_valid, other=0.0
            )
            total = float32_dot(weights, halo_p.to(tl.float32), total, PRECISION, HALF_PRECISION)
        total *= local_share
    if GLOBAL == "product":
        u_base = u + batch * u_batch * U_ALIGN
        pooled_base = pooled + batch * pooled_batch
        for start in range(0, ranks, RANKS):
            rank = start + tl.arange(0, RANKS).to(tl.int64)
            at = (rows * u_row * U_ALIGN)[:, None] + (rank * u_column)[None, :]
            weights = tl.load(u_base + at, mask=valid[:, None] & (rank < ranks)[None, :], other=0.0)
            pooled_rows = tl.load(
                pooled_base + rank[:, None] * labels + label[None, :],
                mask=(rank < ranks)[:, None] & label_valid,
                other=0.0,
            )
            # tensor cores cut their sums, towards zero: each block's is added by itself, in float32
            none = tl.zeros([TILE_ROWS * TILE_COLUMNS * SLOTS, LABELS], tl.float32)
            total += global_share * float32_dot(weights, pooled_rows.to(tl.float32), none, PRECISION, HALF_PRECISION)
    if GLOBAL == "spread":
        # the cell that covers y is the last one whose first row ⌊a · height / cells⌋ is not beyond y; 64 bits for a · y
        y, x = (top + token_y).to(tl.int64), (left + token_x).to(tl.int64)
        cell_y, cell_x = ((y + 1) * cell_rows - 1) // height, ((x + 1) * cell_columns - 1) // width
        cell_height = (cell_y + 1) * height // cell_rows - cell_y * height // cell_rows
        cell_width = (cell_x + 1) * width // cell_columns - cell_x * width // cell_columns
        at = (cell_y * cell_columns + cell_x)[:, None] * labels + label[None, :]
        pooled_rows = tl.load(pooled + batch * pooled_batch + at, mask=valid[:, None] & label_valid, other=0.0)
        total += pooled_rows * (global_share / (cell_height * cell_width).to(tl.float32))[:, None]

    at = batch * height * width * labels + rows[:, None] * labels + label[None, :]
    mask = valid[:, None] & label_valid
    if RESTART:
        total += restart_share * tl.load(seeds + at, mask=mask, other=0.0).to(tl.float32)
    if NORMALIZE:
        mass = tl.sum(total, 1)[:, None]
        total = total / tl.where(mass == 0, 1.0, mass)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)
    if POOL:
        shaped = tl.reshape(tl.where(mask, total, 0.0), [TILE_ROWS * TILE_COLUMNS, SLOTS, LABELS])
        average = tl.sum(shaped, 1) / (BLOCK_ROWS * BLOCK_COLUMNS)
        block = tl.arange(0, TILE_ROWS * TILE_COLUMNS)
        cell_y = (tile // tiles_x) * TILE_ROWS + block // TILE_COLUMNS
        cell_x = (tile % tiles_x) * TILE_COLUMNS + block % TILE_COLUMNS
        cell = batch * cell_rows * cell_columns + cell_y * cell_columns + cell_x
        cell_valid = (cell_y < cell_rows) & (cell_x < cell_columns)
        at = cell[:, None] * labels + label[None, :]
        tl.store(pooled_out + at, average, mask=cell_valid[:, None] & label_valid)


@dataclass(frozen=True)
class Tiling:
    """How tokens are cut: a tile of some blocks, a block of some tokens, each block a power of two of slots."""

    block: tuple[int, int]
    tile: tuple[int, int]

    @property
    def slots(self) -> int:
        """Slots of a block."""
        return triton.next_power_of_2(self.block[0] * self.block[1])

    def tiles(self, grid: list[int]) -> int:
        """Tiles of a grid."""
        return math.prod(triton.cdiv(grid[side], self.block[side] * self.tile[side]) for side in (0, 1))

    @classmethod
    def of_blocks(cls, block: tuple[int, int], slots: int) -> Tiling:
        """Tiles of about ``slots`` slots, at least one block and as square as powers of two allow."""
        tile = [1, 1]
        while 2 * tile[0] * tile[1] * triton.next_power_of_2(block[0] * block[1]) <= slots:
            shorter = 0 if block[0] * tile[0] < block[1] * tile[1] else 1
            tile[shorter] *= 2
        return cls(block, (tile[0], tile[1]))


def tiling(grid: list[int], cell: tuple[int, int] | None, columns: int) -> Tiling:
    """Tiles of 64 tokens, or of 32 where those would not fill a GPU; of whole cells where ``cell`` is their size.

    ``columns`` is the number of columns of P, over all of the batch.
    """
    tokens = grid[0] * grid[1]
    slots = 64 if triton.cdiv(tokens, 64) * triton.cdiv(columns, MAX_LABELS) >= 2 * PROGRAMS_TO_FILL_A_GPU else 32
    if cell is not None:
        return Tiling.of_blocks(cell, slots)
    rows = min(4 if slots == 32 else 8, triton.next_power_of_2(grid[0]))
    return Tiling((rows, slots // rows), (1, 1))


def label_block(labels: int) -> int:
    """Labels of one program; tensor cores want 16 at least."""
    return max(16, min(MAX_LABELS, triton.next_power_of_2(labels)))


@dataclass(frozen=True)
class Step:
    """What a step is made of: everything but the buffers it reads and writes, which alternate.

    ``u`` is (B or 1, N, r) with any strides, ``values`` (B or 1, N, kh·kw) contiguous. ``shares`` are those of the
    restart, of U T and of the window. ``spread`` takes V T of ``cells`` in the place of U T.
    """

    grid: list[int]
    window: list[int]
    cells: list[int]
    tiling: Tiling
    shares: tuple[float, float, float]
    u: Tensor | None = None
    values: Tensor | None = None
    spread: bool = False
    transposed: bool = False

    def plan(
        self,
        p: Tensor,
        pooled: Tensor | None,
        seeds: Tensor | None,
        out: Tensor,
        pooled_out: Tensor | None = None,
        normalize: bool = False,
    ) -> Launch:
        """The launch that writes ``out`` (B, N, C) and, where given, the cells' averages ``pooled_out`` (B, M, C).

        ``p`` (B or 1, N, C), ``pooled`` (B, r, C), ``seeds`` (B, N, C): contiguous.
        """
        batch, _, labels = out.shape
        u, values = p if self.u is None else self.u, p if self.values is None else self.values  # p for what is not read
        strides, aligned = matrix_strides(u=u.unsqueeze(1))
        align = math.gcd(labels, VECTOR_BYTES // 4)
        block = label_block(labels)
        halo, ranks, warps, stages = _blocks([u, values], self.tiling, block)
        return Launch(
            walk_step_kernel,
            batch * self.tiling.tiles(self.grid) * triton.cdiv(labels, block),
            {"p": p, "seeds": p if seeds is None else seeds, "u": u, "values": values, "out": out}
            | {"pooled": p if pooled is None else pooled, "pooled_out": out if pooled_out is None else pooled_out}
            | {"p_batch": batch_stride(p), "pooled_batch": 0 if pooled is None else batch_stride(pooled)}
            | {"values_batch": batch_stride(values), **strides, "u_batch": strides["u_batch"] if u.shape[0] > 1 else 0}
            | {"label_units": labels // align, "ranks": 0 if self.u is None else self.u.shape[2]}
            | {"height": self.grid[0], "width": self.grid[1]}
            | {"cell_rows": self.cells[0], "cell_columns": self.cells[1]}
            | dict(zip(("restart_share", "global_share", "local_share"), self.shares, strict=True)),
            aligned
            | {"LABEL_ALIGN": align, "PRECISION": dot_precision(out), "HALF_PRECISION": half_precision()}
            | {"RESTART": seeds is not None, "GLOBAL": self._global(), "LOCAL": self.values is not None}
            | {"TRANSPOSED": self.transposed, "POOL": pooled_out is not None, "NORMALIZE": normalize}
            | {"BLOCK_ROWS": self.tiling.block[0], "BLOCK_COLUMNS": self.tiling.block[1], "SLOTS": self.tiling.slots}
            | {"TILE_ROWS": self.tiling.tile[0], "TILE_COLUMNS": self.tiling.tile[1], "LABELS": block}
            | {"WINDOW_ROWS": self.window[0], "WINDOW_COLUMNS": self.window[1], "HALO": halo, "RANKS": ranks},
            warps,
            stages,
        )

    def _global(self) -> str:
        if self.spread:
            return "spread"
        return "" if self.u is None else "product"


def _blocks(weights: list[Tensor], tiling: Tiling, labels: int) -> tuple[int, int, int, int]:
    """Tokens of the halo and columns of U that one dot takes, warps and pipeline stages.

    At the sizes of a picture there is one program to a multiprocessor or little more, and each waits for its loads: few
    large ones, two in flight. Larger tiles have neither the registers nor the shared memory for that. Compilers rather
    spill a value or two than have fewer programs on a multiprocessor, so registers are short well before they run out.
    """
    slots = math.prod(tiling.tile) * tiling.slots
    on_tensor_cores = any(is_low_precision(part) or dot_precision(part) == "tf32" for part in weights)
    if slots <= 64:
        small, full = slots * labels <= 2048, slots * labels == 2048
        float32 = not any(is_low_precision(part) for part in weights)
        # float16 as TF32 takes twice the registers; where it stays as it is, 64 columns are 16 bytes for each thread
        widened = [part.dtype == torch.float16 and half_precision() == "tf32" for part in weights]
        ranks = 64 if small and not any(widened) else 32
        # the columns of a matrix whose rows are not contiguous, such as Sᵀ, are addresses for twice the threads
        scattered = any(part.stride(-1) != 1 for part in weights)
        stages = 3 if small or (float32 and on_tensor_cores) else 2
        if widened[0] and (scattered or (full and compute_capability(weights[0]) >= 10)):
            stages = 2
        # window values in float32 beside a full accumulator, or kept for multipliers: 64 bytes of them, not 128
        halo = 16 if float32 and (full or (small and not on_tensor_cores)) else 32
        return halo, ranks, 4 if on_tensor_cores and not scattered else 8, stages
    inner = 32 if on_tensor_cores else 16
    return inner, inner, 8, 2


def batch_stride(tensor: Tensor) -> int:
    """0 where one serves all of the batch."""
    return tensor.stride(0) if tensor.shape[0] > 1 else 0


def half_precision() -> str:
    """How products of float16 weights and float32 are taken: AMD has matrix instructions for float32 as it is."""
    return "tf32" if torch.version.hip is None else "ieee"
