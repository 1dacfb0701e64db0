"""attention_marginal: the mean attention each key receives, mⱼ = (1/N) Σᵢ e^{sᵢⱼ − lseᵢ}, in blocks of rows."""

from __future__ import annotations

from torch import Tensor

from nerve_kernels._operators.library import Operator
from nerve_kernels._triton.availability import why_unsupported_heads

from .score_blocks import head_blocks, probabilities
from .score_gradients import Pass, gradient_of_scores


def eager(q: Tensor, k: Tensor, lse: Tensor, scale: float) -> Tensor:
    """Column sums of one block of attention rows after the other, divided by N at the end."""
    marginal = lse.new_zeros(k.shape[:3])
    for index, rows in head_blocks(q, k):
        marginal[index] += probabilities(q[index][rows], k[index], lse[index][rows], scale).sum(0)
    return marginal / max(1, q.shape[2])


def fake(q: Tensor, k: Tensor, lse: Tensor, scale: float) -> Tensor:
    """One number for each key."""
    return lse.new_empty(k.shape[:3])


def backward(run: Pass, grad: Tensor, q: Tensor, k: Tensor, lse: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """ds = p · g/N; lse enters as −s does, so d lse = −Σⱼ ds."""
    keys = [1, k.shape[2]]
    of_keys = (grad / max(1, q.shape[2])).unsqueeze(2).expand(-1, -1, q.shape[2], -1)
    grad_q, grad_k, sums = run(q, k, lse, None, None, None, None, None, of_keys, keys, [1, 1], keys, scale, 1.0)
    return grad_q, grad_k, -sums


attention_marginal = Operator(
    "attention_marginal(Tensor q, Tensor k, Tensor lse, float scale) -> Tensor",
    eager=eager,
    fake=fake,
    backward=gradient_of_scores(backward),
    triton="attention.attention_marginal",
    why_not_triton=why_unsupported_heads,
)
