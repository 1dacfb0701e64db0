"""fuse_attention_maps: Σ_h w_h A⁽ʰ⁾ of explicit maps, one read and one write of each element, sums in float32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerve_kernels._triton.launch import Launch, matrix_strides


@triton.jit
def fuse_attention_maps_kernel(
    maps, w, fused,
    maps_batch, maps_head, maps_row, maps_column,
    heads, queries, keys,
    MAPS_ALIGN: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    row_blocks, key_blocks = tl.cdiv(queries, ROWS), tl.cdiv(keys, KEYS)
    block = tl.program_id(0) % (row_blocks * key_blocks)
    batch = (tl.program_id(0) // (row_blocks * key_blocks)).to(tl.int64)
    rows = (block // key_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = (block % key_blocks).to(tl.int64) * KEYS + tl.arange(0, KEYS)
    mask = (rows < queries)[:, None] & (columns < keys)[None, :]
    base = maps + batch * maps_batch * MAPS_ALIGN
    offsets = (rows * maps_row * MAPS_ALIGN)[:, None] + (columns * maps_column)[None, :]
    total = tl.zeros([ROWS, KEYS], tl.float32)
    for head in range(heads):
        weight = tl.load(w + batch * heads + head).to(tl.float32)
        total += weight * tl.load(base + offsets, mask=mask, other=0.0).to(tl.float32)
        base += maps_head * MAPS_ALIGN
    out = fused + (batch * queries + rows)[:, None] * keys + columns[None, :]
    tl.store(out, total.to(fused.dtype.element_ty), mask=mask)


def plan(maps: Tensor, w: Tensor, fused: Tensor) -> Launch:
    """The launch that writes ``fused``, (B, N, N_k) contiguous; so is ``w``."""
    batch, heads, queries, keys = maps.shape
    columns = max(16, min(256, triton.next_power_of_2(keys)))
    rows = 2048 // columns
    strides, aligned = matrix_strides(maps=maps)
    return Launch(
        fuse_attention_maps_kernel,
        batch * triton.cdiv(queries, rows) * triton.cdiv(keys, columns),
        {"maps": maps, "w": w, "fused": fused, **strides, "heads": heads, "queries": queries, "keys": keys},
        {**aligned, "ROWS": rows, "KEYS": columns},
        4,
        2,
    )


def run(maps: Tensor, w: Tensor, widen: bool = False) -> Tensor:
    """The weighted sum of explicit maps over heads, in the dtype of the maps, or in float32."""
    dtype = torch.float32 if widen else maps.dtype
    fused = torch.empty((maps.shape[0], *maps.shape[2:]), dtype=dtype, device=maps.device)
    plan(maps, w.contiguous(), fused).run()
    return fused
