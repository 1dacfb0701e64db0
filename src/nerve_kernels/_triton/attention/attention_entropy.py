"""attention_entropy: one pass over the keys, keeping m = max s, l = Σ e^{s−m}, t = Σ e^{s−m}(s−m) of each row.

A program owns a block of rows of one head and reads the keys once. Nothing but entropy and lse is written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerve_kernels._triton.launch import (
    HeadSplit,
    Launch,
    dot_precision,
    is_low_precision,
    matrix_strides,
    score_precision,
)

from .tiles import LN_2, LOG2_E, load_columns

# With a scale of 0 every score counts alike, but a masked key must still count nothing: −∞ · 0 would be NaN.
MIN_SCALE = 1e-30
NARROW = 48  # columns of float32 heads whose three terms fit into the registers of every NVIDIA GPU


@triton.jit
def attention_entropy_kernel(
    q, k, entropy, lse,
    q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
    heads, queries, keys, scale,
    Q_ALIGN: tl.constexpr, K_ALIGN: tl.constexpr,
    SIZE: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, MASK_KEYS: tl.constexpr, NEGATE: tl.constexpr,
):  # fmt: skip
    """Scores stay unscaled: z = (u − max u) · scale · log₂ e is exact at the maximum, however large the scores are."""
    blocks = tl.cdiv(queries, ROWS)
    head_index = (tl.program_id(0) // blocks).to(tl.int64)
    batch, head = head_index // heads, head_index % heads
    rows = (tl.program_id(0) % blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row_valid = rows < queries
    q_base = q + (batch * q_batch + head * q_head) * Q_ALIGN
    k_base = k + (batch * k_batch + head * k_head) * K_ALIGN
    q_first = load_columns(q_base, rows, row_valid, q_row * Q_ALIGN, q_column, 0, FIRST, SIZE)
    if REST > 0:
        q_rest = load_columns(q_base, rows, row_valid, q_row * Q_ALIGN, q_column, FIRST, REST, SIZE)

    unit = scale * LOG2_E
    m = tl.full([ROWS], float("-inf"), tl.float32)
    l = tl.zeros([ROWS], tl.float32)  # noqa: E741
    t = tl.zeros([ROWS], tl.float32)
    for start in range(0, keys, KEYS):
        key_rows = start + tl.arange(0, KEYS).to(tl.int64)
        key_valid = key_rows < keys
        k_tile = load_columns(k_base, key_rows, key_valid, k_row * K_ALIGN, k_column, 0, FIRST, SIZE)
        u = tl.dot(q_first, tl.trans(k_tile), input_precision=PRECISION)
        if REST > 0:
            k_tile = load_columns(k_base, key_rows, key_valid, k_row * K_ALIGN, k_column, FIRST, REST, SIZE)
            u = tl.dot(q_rest, tl.trans(k_tile), u, input_precision=PRECISION)
        if NEGATE:
            u = -u
        if MASK_KEYS:
            u = tl.where(key_valid[None, :], u, float("-inf"))
        m_new = tl.maximum(m, tl.max(u, 1))
        # while every score of a row is −∞ its sums are 0 and stay so; −∞ − (−∞) would make them NaN
        origin = tl.where(m_new == float("-inf"), 0.0, m_new)
        delta = tl.where(m == float("-inf"), 0.0, (m - origin) * unit)
        factor = tl.exp2(delta)
        t = factor * (t + l * delta)  # before l: it needs the old one
        l = factor * l  # noqa: E741
        z = (u - origin[:, None]) * unit
        p = tl.exp2(z)
        l += tl.sum(p, 1)  # noqa: E741
        # 2^−256 is 0 in float32; a masked key has p = 0 and must add 0, not 0 · −∞
        t += tl.sum(p * tl.maximum(z, -256.0), 1)
        m = m_new

    h = LN_2 * (tl.log2(l) - t / l)
    out = head_index * queries + rows
    tl.store(entropy + out, tl.where(h < 0, 0.0, h), mask=row_valid)
    # a row without a finite score has no distribution: NaN in both, as softmax has it
    tl.store(lse + out, tl.where(l == 0, float("nan"), m * scale + LN_2 * tl.log2(l)), mask=row_valid)


def plan(q: Tensor, k: Tensor, scale: float, entropy: Tensor, lse: Tensor) -> Launch:
    """The launch that writes ``entropy`` and ``lse``, both (B, heads, N) float32."""
    batch, heads, queries, size = q.shape
    rows, keys, warps, stages = _blocks(q)
    strides, aligned = matrix_strides(q=q, k=k)
    split = HeadSplit.of(size)
    return Launch(
        attention_entropy_kernel,
        batch * heads * triton.cdiv(queries, rows),
        {"q": q, "k": k, "entropy": entropy, "lse": lse, **strides}
        | {"heads": heads, "queries": queries, "keys": k.shape[2], "scale": max(abs(scale), MIN_SCALE)},
        aligned
        | {"SIZE": size, "FIRST": split.first, "REST": split.rest, "PRECISION": score_precision(q, NARROW)}
        | {"ROWS": rows, "KEYS": keys, "MASK_KEYS": k.shape[2] % keys != 0, "NEGATE": scale < 0},
        warps,
        stages,
    )


def _blocks(q: Tensor) -> tuple[int, int, int, int]:
    """Rows, keys, warps and pipeline stages."""
    if is_low_precision(q):
        return (128, 64, 4, 3) if q.shape[3] <= 64 else (64, 64, 4, 2)
    if score_precision(q, NARROW) == "tf32x3":
        return (128, 64, 8, 1) if q.shape[3] <= 128 else (64, 32, 4, 1)  # of a larger head as much as memory holds
    if q.shape[3] <= 48 or (q.shape[3] <= 64 and dot_precision(q) == "tf32"):
        return 64, 64, 8, 1
    return (32, 64, 8, 1) if q.shape[3] <= 64 else (32, 32, 8, 1)


def run(q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Entropy and lse of every attention row."""
    entropy = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    lse = torch.empty_like(entropy)
    plan(q, k, scale, entropy, lse).run()
    return entropy, lse
