"""attention_marginal: column means of e^{s − lse}; a program owns a block of keys of a head and reads its queries once.

Sums run over the query blocks in order, in registers: no atomics, so results repeat bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerve_kernels._triton.launch import HeadSplit, Launch, is_low_precision, matrix_strides, score_precision

from .tiles import LOG2_E, load_columns


@triton.jit
def attention_marginal_kernel(
    q, k, lse, marginal,
    q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
    heads, queries, keys, scale,
    Q_ALIGN: tl.constexpr, K_ALIGN: tl.constexpr,
    SIZE: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(keys, KEYS)
    head_index = (tl.program_id(0) // blocks).to(tl.int64)
    batch, head = head_index // heads, head_index % heads
    key_rows = (tl.program_id(0) % blocks).to(tl.int64) * KEYS + tl.arange(0, KEYS)
    key_valid = key_rows < keys
    q_base = q + (batch * q_batch + head * q_head) * Q_ALIGN
    k_base = k + (batch * k_batch + head * k_head) * K_ALIGN
    k_first = load_columns(k_base, key_rows, key_valid, k_row * K_ALIGN, k_column, 0, FIRST, SIZE)
    if REST > 0:
        k_rest = load_columns(k_base, key_rows, key_valid, k_row * K_ALIGN, k_column, FIRST, REST, SIZE)

    total = tl.zeros([KEYS], tl.float32)
    for start in range(0, queries, ROWS):
        rows = start + tl.arange(0, ROWS).to(tl.int64)
        row_valid = rows < queries
        q_tile = load_columns(q_base, rows, row_valid, q_row * Q_ALIGN, q_column, 0, FIRST, SIZE)
        scores = tl.dot(q_tile, tl.trans(k_first), input_precision=PRECISION)
        if REST > 0:
            q_tile = load_columns(q_base, rows, row_valid, q_row * Q_ALIGN, q_column, FIRST, REST, SIZE)
            scores = tl.dot(q_tile, tl.trans(k_rest), scores, input_precision=PRECISION)
        # a row that is not there has lse = ∞, so that it adds e^{−∞} = 0
        row_lse = tl.load(lse + head_index * queries + rows, mask=row_valid, other=float("inf"))
        total += tl.sum(tl.exp2((scores * scale - row_lse[:, None]) * LOG2_E), 0)
    tl.store(marginal + head_index * keys + key_rows, total / queries, mask=key_valid)


def plan(q: Tensor, k: Tensor, lse: Tensor, scale: float, marginal: Tensor) -> Launch:
    """The launch that writes ``marginal``, (B, heads, N_k) float32; ``lse`` is contiguous."""
    batch, heads, queries, size = q.shape
    rows, keys, warps, stages = _blocks(q)
    strides, aligned = matrix_strides(q=q, k=k)
    split = HeadSplit.of(size)
    return Launch(
        attention_marginal_kernel,
        batch * heads * triton.cdiv(k.shape[2], keys),
        {"q": q, "k": k, "lse": lse, "marginal": marginal, **strides}
        | {"heads": heads, "queries": queries, "keys": k.shape[2], "scale": scale},
        aligned
        | {"SIZE": size, "FIRST": split.first, "REST": split.rest, "PRECISION": score_precision(q)}
        | {"ROWS": rows, "KEYS": keys},
        warps,
        stages,
    )


def _blocks(q: Tensor) -> tuple[int, int, int, int]:
    """Rows, keys, warps and pipeline stages."""
    if is_low_precision(q):
        return (64, 64, 4, 3) if q.shape[3] <= 64 else (64, 64, 4, 2)
    if score_precision(q) == "tf32x3":
        return 64, 64, 4 if q.shape[3] <= 80 else 8, 1
    return (32, 64, 8, 1) if q.shape[3] <= 64 else (32, 32, 8, 1)


def run(q: Tensor, k: Tensor, lse: Tensor, scale: float) -> Tensor:
    """Mean attention that each key receives."""
    if q.shape[2] == 0:
        return torch.zeros(k.shape[:3], dtype=torch.float32, device=k.device)
    marginal = torch.empty(k.shape[:3], dtype=torch.float32, device=k.device)
    plan(q, k, lse.contiguous(), scale, marginal).run()
    return marginal
