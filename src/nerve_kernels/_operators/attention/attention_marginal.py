"""attention_marginal: the mean attention each key receives, mⱼ = (1/N) Σᵢ e^{sᵢⱼ − lseᵢ}, in blocks of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from nerve_kernels._operators.library import Operator
from nerve_kernels._triton.availability import why_unsupported_heads

from .score_blocks import head_blocks, probabilities


def eager(q: Tensor, k: Tensor, lse: Tensor, scale: float) -> Tensor:
    """Column sums of one block of attention rows after the other, divided by N at the end."""
    marginal = lse.new_zeros(k.shape[:3])
    for index, rows in head_blocks(q, k):
        marginal[index] += probabilities(q[index][rows], k[index], lse[index][rows], scale).sum(0)
    return marginal / max(1, q.shape[2])


def fake(q: Tensor, k: Tensor, lse: Tensor, scale: float) -> Tensor:
    """One number for each key."""
    return lse.new_empty(k.shape[:3])


def backward(grad: Tensor, q: Tensor, k: Tensor, lse: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """ds = p · g/N; lse enters as −s does, so d lse = −Σⱼ ds."""
    grad_q = torch.empty(q.shape, dtype=lse.dtype, device=q.device)
    grad_k = torch.zeros(k.shape, dtype=lse.dtype, device=k.device)
    grad_lse = torch.empty_like(lse)
    for index, rows in head_blocks(q, k):
        grad_scores = probabilities(q[index][rows], k[index], lse[index][rows], scale) * (grad[index] / q.shape[2])
        grad_lse[index][rows] = -grad_scores.sum(-1)
        grad_q[index][rows] = scale * (grad_scores @ k[index].to(lse.dtype))
        grad_k[index] += scale * (grad_scores.transpose(-1, -2) @ q[index][rows].to(lse.dtype))
    return grad_q, grad_k, grad_lse


attention_marginal = Operator(
    "attention_marginal(Tensor q, Tensor k, Tensor lse, float scale) -> Tensor",
    eager=eager,
    fake=fake,
    backward=backward,
    triton="attention.attention_marginal",
    why_not_triton=why_unsupported_heads,
)
