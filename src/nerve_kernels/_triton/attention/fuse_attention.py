"""fuse_attention: Σ_h w_h e^{s − lse}, one tile of the map per program, heads inside, each output written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerve_kernels._triton.launch import HeadSplit, Launch, is_low_precision, matrix_strides, score_precision

from .tiles import fused_tile


@triton.jit
def fuse_attention_kernel(
    q, k, w, lse, fused,
    q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
    heads, queries, keys, scale,
    Q_ALIGN: tl.constexpr, K_ALIGN: tl.constexpr,
    SIZE: tl.constexpr, FIRST: tl.constexpr, REPEAT: tl.constexpr, REST: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    row_blocks, key_blocks = tl.cdiv(queries, ROWS), tl.cdiv(keys, KEYS)
    block = tl.program_id(0) % (row_blocks * key_blocks)
    batch = (tl.program_id(0) // (row_blocks * key_blocks)).to(tl.int64)
    rows = (block // key_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    key_rows = (block % key_blocks).to(tl.int64) * KEYS + tl.arange(0, KEYS)
    row_valid, key_valid = rows < queries, key_rows < keys
    total = fused_tile(
        tl.zeros([ROWS, KEYS], tl.float32), q, k, w, lse, batch, heads, queries, scale,
        rows, row_valid, q_batch, q_head, q_row, q_column,
        key_rows, key_valid, k_batch, k_head, k_row, k_column,
        Q_ALIGN, K_ALIGN, SIZE, FIRST, REPEAT, REST, PRECISION,
    )  # fmt: skip
    out = fused + (batch * queries + rows)[:, None] * keys + key_rows[None, :]
    tl.store(out, total.to(fused.dtype.element_ty), mask=row_valid[:, None] & key_valid[None, :])


def plan(q: Tensor, k: Tensor, w: Tensor, lse: Tensor, scale: float, fused: Tensor) -> Launch:
    """The launch that writes ``fused``, (B, N, N_k) contiguous; so are ``w`` and ``lse``."""
    batch, heads, queries, size = q.shape
    rows, keys, warps, stages = _blocks(q)
    strides, aligned = matrix_strides(q=q, k=k)
    split = HeadSplit.of(size) if is_low_precision(q) else HeadSplit.into_slices(size)
    return Launch(
        fuse_attention_kernel,
        batch * triton.cdiv(queries, rows) * triton.cdiv(k.shape[2], keys),
        {"q": q, "k": k, "w": w, "lse": lse, "fused": fused, **strides}
        | {"heads": heads, "queries": queries, "keys": k.shape[2], "scale": scale},
        aligned | {"SIZE": size, **split.constants(), "PRECISION": score_precision(q)} | {"ROWS": rows, "KEYS": keys},
        warps,
        stages,
    )


def _blocks(q: Tensor) -> tuple[int, int, int, int]:
    """Rows, keys, warps and pipeline stages."""
    size = q.shape[3]
    if is_low_precision(q):
        return (128, 64, 4 if size <= 48 else 8, 2) if size <= 80 else (64, 64, 4, 2)
    if score_precision(q) == "tf32x3":
        return 128, 64, 8, 1
    return (64, 64, 8, 1) if size <= 80 else (64, 32, 8, 1)


def run(q: Tensor, k: Tensor, w: Tensor, lse: Tensor, scale: float) -> Tensor:
    """The weighted sum of the heads' attention maps, in the dtype of q."""
    fused = torch.empty((q.shape[0], q.shape[2], k.shape[2]), dtype=q.dtype, device=q.device)
    plan(q, k, w.contiguous(), lse.contiguous(), scale, fused).run()
    return fused
