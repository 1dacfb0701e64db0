"""attention_map_entropy: −Σ A log A of explicit maps, each element read once, a block of rows per program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerve_kernels._triton.launch import Launch, matrix_strides


@triton.jit
def attention_map_entropy_kernel(
    maps, entropy,
    maps_batch, maps_head, maps_row, maps_column,
    heads, queries, keys,
    MAPS_ALIGN: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(queries, ROWS)
    head_index = (tl.program_id(0) // blocks).to(tl.int64)
    batch, head = head_index // heads, head_index % heads
    rows = (tl.program_id(0) % blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row_valid = rows < queries
    row_base = maps + ((batch * maps_batch + head * maps_head) + rows * maps_row) * MAPS_ALIGN
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, keys, KEYS):
        columns = start + tl.arange(0, KEYS).to(tl.int64)
        mask = row_valid[:, None] & (columns < keys)[None, :]
        a = tl.load(row_base[:, None] + columns[None, :] * maps_column, mask=mask, other=0.0).to(tl.float32)
        # as torch.special.entr: 0 at 0, −∞ below, NaN stays NaN
        outside = tl.where(a < 0, float("-inf"), a * 0.0)
        total += tl.sum(tl.where(a > 0, -a * tl.log(tl.where(a > 0, a, 1.0)), outside), 1)
    tl.store(entropy + head_index * queries + rows, total, mask=row_valid)


def plan(maps: Tensor, entropy: Tensor) -> Launch:
    """The launch that writes ``entropy``, (B, heads, N) float32."""
    batch, heads, queries, keys = maps.shape
    columns = max(16, min(1024, triton.next_power_of_2(keys)))
    rows = 4096 // columns
    strides, aligned = matrix_strides(maps=maps)
    return Launch(
        attention_map_entropy_kernel,
        batch * heads * triton.cdiv(queries, rows),
        {"maps": maps, "entropy": entropy, **strides, "heads": heads, "queries": queries, "keys": keys},
        {**aligned, "ROWS": rows, "KEYS": columns},
        4,
        2,
    )


def run(maps: Tensor) -> Tensor:
    """Entropy of every row."""
    entropy = torch.empty(maps.shape[:3], dtype=torch.float32, device=maps.device)
    plan(maps, entropy).run()
    return entropy
