"""attention_entropy: 𝓗 = log l − t/l and lse = m + log l of every attention row, one block of rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from nerve_kernels._operators.library import Operator, accumulation_dtype, define_native
from nerve_kernels._triton.availability import run_lazily, why_unsupported_heads

from .overflow import refusing_overflow
from .score_blocks import head_blocks, scores
from .score_gradients import Pass, gradient_of_scores


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
    run: Pass, grad_entropy: Tensor, grad_lse: Tensor, q: Tensor, k: Tensor, scale: float, entropy: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    """ds = p · (g_lse − g_𝓗 (log p + 𝓗)), with log p = s − lse."""
    keys = [1, k.shape[2]]
    a, b = grad_lse - grad_entropy * entropy, -grad_entropy
    grad_q, grad_k, _ = run(q, k, lse, a, b, None, None, None, None, keys, [1, 1], keys, scale, 1.0)
    return grad_q, grad_k


attention_entropy = Operator(
    "attention_entropy(Tensor q, Tensor k, float scale) -> (Tensor, Tensor)",
    eager=refusing_overflow(eager),
    fake=fake,
    backward=gradient_of_scores(backward, saves_results=True),
    cpp=refusing_overflow(attention_entropy_cpp),
    triton=refusing_overflow(run_lazily("attention.attention_entropy")),
    why_not_triton=why_unsupported_heads,
)
