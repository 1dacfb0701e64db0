"""attention_entropy: 𝓗 = log l − t/l and lse = m + log l of every attention row, one block of rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from nerve_kernels._operators.library import Gradient, Operator, accumulation_dtype, define_native
from nerve_kernels._triton.availability import run_lazily, why_unsupported_heads

from .overflow import refusing_overflow
from .score_blocks import head_blocks, scores


def eager(q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """With m = max s: p = softmax(s), log l = −log max p, and 𝓗 = log l − Σ p (s−m).

    The largest probability of a row is e⁰/l, so torch's softmax kernel, whose exponential is far faster than
    ``torch.exp`` on a CPU, yields l too; the centred sum does not cancel where 𝓗 is near 0.
    """
    dtype = accumulation_dtype(q, k)
    entropy = q.new_empty(q.shape[:3], dtype=dtype)
    lse = torch.empty_like(entropy)
    for index, rows in head_blocks(q, k):
        block = scores(q[index][rows], k[index], scale, dtype)
        maximum = block.amax(-1, keepdim=True)
        p = block.softmax(-1)
        log_mass = p.amax(-1).log_().neg_()
        # a masked key (score −inf) has p = 0 and must add 0, not 0 · −inf; a row with a NaN score is NaN in log_mass
        weighted = p.mul_(block.sub_(maximum)).nansum(-1)
        entropy[index][rows] = (log_mass - weighted).clamp_(min=0)
        lse[index][rows] = maximum.squeeze(-1) + log_mass
    return entropy, lse


def fake(q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """One number for each row, twice."""
    dtype = accumulation_dtype(q, k)
    return q.new_empty(q.shape[:3], dtype=dtype), q.new_empty(q.shape[:3], dtype=dtype)


attention_entropy_cpp = define_native(
    "_attention_entropy_cpp(Tensor q, Tensor k, float scale) -> (Tensor, Tensor)", fake
)


def backward(
    grad_entropy: Tensor, grad_lse: Tensor, q: Tensor, k: Tensor, scale: float, entropy: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    """ds = p · (g_lse − g_𝓗 (log p + 𝓗)), with log p = s − lse; then dq = scale · ds k and dk = scale · dsᵀ q."""
    grad_q = torch.empty(q.shape, dtype=lse.dtype, device=q.device)
    grad_k = torch.zeros(k.shape, dtype=lse.dtype, device=k.device)
    for index, rows in head_blocks(q, k):
        log_p = scores(q[index][rows], k[index], scale, lse.dtype).sub_(lse[index][rows].unsqueeze(-1))
        p = log_p.exp()
        inner = log_p.clamp_(min=torch.finfo(lse.dtype).min).add_(entropy[index][rows].unsqueeze(-1))
        grad_scores = inner.mul_(-grad_entropy[index][rows].unsqueeze(-1)).add_(grad_lse[index][rows].unsqueeze(-1))
        grad_scores.mul_(p)
        grad_q[index][rows] = scale * (grad_scores @ k[index].to(lse.dtype))
        grad_k[index] += scale * (grad_scores.transpose(-1, -2) @ q[index][rows].to(lse.dtype))
    return grad_q, grad_k


attention_entropy = Operator(
    "attention_entropy(Tensor q, Tensor k, float scale) -> (Tensor, Tensor)",
    eager=refusing_overflow(eager),
    fake=fake,
    backward=Gradient(backward, saves_results=True),
    cpp=refusing_overflow(attention_entropy_cpp),
    triton=refusing_overflow(run_lazily("attention.attention_entropy")),
    why_not_triton=why_unsupported_heads,
)
