"""fuse_attention: A_w = Σ_h w_h A⁽ʰ⁾ of attention that never exists head by head; one dense map is returned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nerve_kernels._operators.library import Operator
from nerve_kernels._triton.availability import why_unsupported_heads

from .score_blocks import probabilities, row_blocks


def fused_rows(q: Tensor, k: Tensor, w: Tensor, lse: Tensor, scale: float, b: int, rows: slice) -> Tensor:
    """Σ_h w_h e^{s − lse} of one block of rows, heads added one after the other, in the dtype of ``lse``."""
    total = lse.new_zeros((rows.stop - rows.start, k.shape[2]))
    for h in range(q.shape[1]):
        total.addcmul_(probabilities(q[b, h, rows], k[b, h], lse[b, h, rows], scale), w[b, h].to(lse.dtype))
    return total


def eager(q: Tensor, k: Tensor, w: Tensor, lse: Tensor, scale: float) -> Tensor:
    """One block of rows at a time, heads looped inside: each output is written once."""
    fused = q.new_empty((q.shape[0], q.shape[2], k.shape[2]))
    for b, rows in row_blocks(q, k):
        fused[b, rows] = fused_rows(q, k, w, lse, scale, b, rows).to(q.dtype)
    return fused


def fake(q: Tensor, k: Tensor, w: Tensor, lse: Tensor, scale: float) -> Tensor:
    """A dense map."""
    return q.new_empty((q.shape[0], q.shape[2], k.shape[2]))


def accumulate_block_gradients(
    grad_rows: Tensor, inputs: tuple[Tensor, ...], grads: tuple[Tensor, ...], scale: float, b: int, rows: slice
) -> None:
    """Add one block's share to the gradients of q, k, w, lse, given the gradient of the fused map's rows.

    dw_h = Σ g p_h; ds_h = w_h g p_h; lse enters as −s does, so d lse = −Σⱼ ds.
    """
    q, k, w, lse = inputs
    grad_q, grad_k, grad_w, grad_lse = grads
    for h in range(q.shape[1]):
        weighted = probabilities(q[b, h, rows], k[b, h], lse[b, h, rows], scale) * grad_rows
        grad_w[b, h] += weighted.sum()
        grad_scores = weighted * w[b, h].to(lse.dtype)
        grad_lse[b, h, rows] = -grad_scores.sum(-1)
        grad_q[b, h, rows] = scale * (grad_scores @ k[b, h].to(lse.dtype))
        grad_k[b, h] += scale * (grad_scores.transpose(-1, -2) @ q[b, h, rows].to(lse.dtype))


def fused_gradients(
    grad_rows: Callable[[int, slice], Tensor], q: Tensor, k: Tensor, w: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, ...]:
    """The gradients of q, k, w and lse, given the gradient of the fused map for any block of its rows."""
    inputs = (q, k, w, lse)
    grads = tuple(torch.zeros(item.shape, dtype=lse.dtype, device=item.device) for item in inputs)
    for b, rows in row_blocks(q, k):
        accumulate_block_gradients(grad_rows(b, rows).to(lse.dtype), inputs, grads, scale, b, rows)
    return grads


def backward(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Block by block, from the map's own gradient."""
    return fused_gradients(lambda b, rows: grad[b, rows], *inputs)


fuse_attention = Operator(
    "fuse_attention(Tensor q, Tensor k, Tensor w, Tensor lse, float scale) -> Tensor",
    eager=eager,
    fake=fake,
    backward=backward,
    triton="attention.fuse_attention",
    why_not_triton=why_unsupported_heads,
)
