"""fuse_attention: A_w = Σ_h w_h A⁽ʰ⁾ of attention that never exists head by head; one dense map is returned."""

from __future__ import annotations

from torch import Tensor

from nerve_kernels._operators.library import Operator
from nerve_kernels._triton.availability import why_unsupported_heads

from .score_blocks import probabilities, row_blocks
from .score_gradients import Pass, fused_gradients, gradient_of_scores


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


def backward(run: Pass, grad: Tensor, q: Tensor, k: Tensor, w: Tensor, lse: Tensor, scale: float) -> tuple[Tensor, ...]:
    """A map is its sums over cells of one key each."""
    keys = [1, k.shape[2]]
    return fused_gradients(run, grad, q, k, w, lse, keys, keys, scale)


fuse_attention = Operator(
    "fuse_attention(Tensor q, Tensor k, Tensor w, Tensor lse, float scale) -> Tensor",
    eager=eager,
    fake=fake,
    backward=gradient_of_scores(backward),
    triton="attention.fuse_attention",
    why_not_triton=why_unsupported_heads,
)
