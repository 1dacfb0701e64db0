"""The gradient of U over several steps, dL/dU[i, m] += share · Σ_t Σ_c λ_t[i, c] T_t[m, c].

One product as long as steps · C, so that dU is read and written once for all of them. A program owns a block of it, and
goes through steps, and where one U served all of a batch through the batch, in their order.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from nerve_kernels._triton.launch import Launch, score_precision

from .walk_step import label_block


@triton.jit
def u_gradient_kernel(
    adjoints, pools, grad_u, adjoints_step, pools_step, steps, batches, labels, tokens, ranks, share,
    PRECISION: tl.constexpr, TOKENS: tl.constexpr, RANKS: tl.constexpr, LABELS: tl.constexpr,
):  # fmt: skip
    rank_blocks, token_blocks = tl.cdiv(ranks, RANKS), tl.cdiv(tokens, TOKENS)
    token = ((tl.program_id(0) // rank_blocks) % token_blocks).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    rank = (tl.program_id(0) % rank_blocks).to(tl.int64) * RANKS + tl.arange(0, RANKS)
    first = (tl.program_id(0) // (rank_blocks * token_blocks)).to(tl.int64)
    token_valid, rank_valid = (token < tokens)[:, None], (rank < ranks)[None, :]
    total = tl.zeros([TOKENS, RANKS], tl.float32)
    for turn in range(steps * batches):
        step, batch = (turn // batches).to(tl.int64), first * batches + turn % batches
        left = adjoints + step * adjoints_step + batch * tokens * labels
        right = pools + step * pools_step + batch * ranks * labels
        for start in range(0, labels, LABELS):
            label = start + tl.arange(0, LABELS)
            valid = label < labels
            at = token[:, None] * labels + label[None, :]
            adjoint = tl.load(left + at, mask=token_valid & valid[None, :], other=0.0)
            at = rank[None, :] * labels + label[:, None]
            pooled = tl.load(right + at, mask=rank_valid & valid[:, None], other=0.0)
            # a sum by itself, as in the walk's step: tensor cores cut long ones
            total += tl.dot(adjoint, pooled, input_precision=PRECISION)
    at = grad_u + (first * tokens + token[:, None]) * ranks + rank[None, :]
    mask = token_valid & rank_valid
    tl.store(at, tl.load(at, mask=mask, other=0.0) + share * total, mask=mask)


def plan_u(adjoints: Tensor, pools: Tensor, share: float, grad_u: Tensor) -> Launch:
    """The launch that adds to ``grad_u``, (B or 1, N, r) float32 contiguous.

    ``adjoints`` (steps, B, N, C) and ``pools`` (steps, B, r, C) float32, each step's contiguous.
    """
    steps, batch, tokens, labels = adjoints.shape
    kept, ranks, block = grad_u.shape[0], grad_u.shape[2], 64
    return Launch(
        u_gradient_kernel,
        kept * triton.cdiv(tokens, block) * triton.cdiv(ranks, block),
        {"adjoints": adjoints, "pools": pools, "grad_u": grad_u}
        | {"adjoints_step": adjoints.stride(0), "pools_step": pools.stride(0), "steps": steps}
        | {"batches": batch // kept, "labels": labels, "tokens": tokens, "ranks": ranks, "share": share},
        {"PRECISION": score_precision(adjoints), "TOKENS": block, "RANKS": block}
        | {"LABELS": min(32, label_block(labels))},
        8,
        2,
    )
