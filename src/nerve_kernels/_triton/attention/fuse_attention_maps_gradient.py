"""The gradient of fuse_attention_maps: dA⁽ʰ⁾ = w_h g and dw_h = Σ g A⁽ʰ⁾, one read of the maps and of g."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerve_kernels._triton.launch import Launch, matrix_strides


@triton.jit
def fuse_attention_maps_gradient_kernel(
    grad, maps, w, grad_maps, sums,
    maps_batch, maps_head, maps_row, maps_column,
    heads, queries, keys,
    MAPS_ALIGN: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    row_blocks, key_blocks = tl.cdiv(queries, ROWS), tl.cdiv(keys, KEYS)
    program = tl.program_id(0).to(tl.int64)
    block = tl.program_id(0) % (row_blocks * key_blocks)
    batch = (tl.program_id(0) // (row_blocks * key_blocks)).to(tl.int64)
    rows = (block // key_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = (block % key_blocks).to(tl.int64) * KEYS + tl.arange(0, KEYS)
    mask = (rows < queries)[:, None] & (columns < keys)[None, :]
    places = rows[:, None] * keys + columns[None, :]
    g = tl.load(grad + batch * queries * keys + places, mask=mask, other=0.0).to(tl.float32)
    base = maps + batch * maps_batch * MAPS_ALIGN
    offsets = (rows * maps_row * MAPS_ALIGN)[:, None] + (columns * maps_column)[None, :]
    out = grad_maps + batch * heads * queries * keys
    for head in range(heads):
        weight = tl.load(w + batch * heads + head).to(tl.float32)
        part = tl.load(base + offsets, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + places, (weight * g).to(grad_maps.dtype.element_ty), mask=mask)
        # each block has a place of its own: they are added up in order afterwards
        tl.store(sums + program * heads + head, tl.sum(tl.sum(g * part, 1), 0))
        base += maps_head * MAPS_ALIGN
        out += queries.to(tl.int64) * keys


def _blocks(keys: int) -> tuple[int, int]:
    """Rows and keys of a block."""
    columns = max(16, min(256, triton.next_power_of_2(keys)))
    return 2048 // columns, columns


def plan(grad: Tensor, maps: Tensor, w: Tensor, grad_maps: Tensor, sums: Tensor) -> Launch:
    """The launch that writes ``grad_maps`` and ``sums`` (B, blocks, heads); all but the maps are contiguous."""
    batch, heads, queries, keys = maps.shape
    rows, columns = _blocks(keys)
    strides, aligned = matrix_strides(maps=maps)
    return Launch(
        fuse_attention_maps_gradient_kernel,
        batch * triton.cdiv(queries, rows) * triton.cdiv(keys, columns),
        {"grad": grad, "maps": maps, "w": w, "grad_maps": grad_maps, "sums": sums, **strides}
        | {"heads": heads, "queries": queries, "keys": keys},
        {**aligned, "ROWS": rows, "KEYS": columns},
        4,
        2,
    )


def run(grad: Tensor, maps: Tensor, w: Tensor, widen: bool = False) -> tuple[Tensor, Tensor]:
    """dA of every head in the dtype of the maps, and dw in float32."""
    batch, heads, queries, keys = maps.shape
    rows, columns = _blocks(keys)
    grad_maps = torch.empty(maps.shape, dtype=maps.dtype, device=maps.device)
    blocks = triton.cdiv(queries, rows) * triton.cdiv(keys, columns)
    sums = torch.empty((batch, blocks, heads), dtype=torch.float32, device=maps.device)
    plan(grad.contiguous(), maps, w.contiguous(), grad_maps, sums).run()
    return grad_maps, sums.sum(1)
