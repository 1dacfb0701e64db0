"""Attention scores in blocks of rows: the one loop under every eager attention operator.

A (heads, N, N_k) tensor is never allocated. Scores exist for one block at a time, small enough to stay in a CPU's
cache, and every operator reduces the block before the next one is computed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Elements of one block of scores. On a CPU a block and its exponentials should stay in the cores' caches (2 × 2 MiB of
# float32 here; measured: 128 rows of 4096 keys are 1.2 × as fast as 512); a GPU wants enough work per launch.
CPU_BLOCK_ELEMENTS = 1 << 19
GPU_BLOCK_ELEMENTS = 1 << 24


def rows_per_block(keys: int, device: torch.device) -> int:
    """How many rows of scores over ``keys`` keys make one block."""
    elements = CPU_BLOCK_ELEMENTS if device.type == "cpu" else GPU_BLOCK_ELEMENTS
    return max(1, elements // max(1, keys))


def head_blocks(q: Tensor, k: Tensor) -> Iterator[tuple[tuple[int, int], slice]]:
    """((batch, head), rows) of each block, one head at a time."""
    batch, heads, queries, _ = q.shape
    step = rows_per_block(k.shape[2], q.device)
    for b in range(batch):
        for h in range(heads):
            for start in range(0, queries, step):
                yield (b, h), slice(start, min(start + step, queries))


def row_blocks(q: Tensor, k: Tensor) -> Iterator[tuple[int, slice]]:
    """(batch, rows) of each block, for operators that sum over heads inside a block."""
    step = rows_per_block(k.shape[2], q.device)
    for b in range(q.shape[0]):
        for start in range(0, q.shape[2], step):
            yield b, slice(start, min(start + step, q.shape[2]))


def scores(q_rows: Tensor, keys: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """scale · q kᵀ of one block, in ``dtype``; low-precision inputs are widened before the product, not after."""
    return (q_rows.to(dtype) * scale) @ keys.to(dtype).transpose(-1, -2)


def probabilities(q_rows: Tensor, keys: Tensor, lse_rows: Tensor, scale: float) -> Tensor:
    """exp(scale · q kᵀ − lse) of one block: attention rows without a softmax, in the dtype of ``lse``."""
    return scores(q_rows, keys, scale, lse_rows.dtype).sub_(lse_rows.unsqueeze(-1)).exp_()
