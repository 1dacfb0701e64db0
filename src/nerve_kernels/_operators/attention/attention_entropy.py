"""attention_entropy: 𝓗 = log l − t/l and lse = m + log l of every attention row, one block of rows at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nerve_kernels._operators import dispatch
from nerve_kernels._operators.library import accumulation_dtype, define, differentiate, fold_batch, implement
from nerve_kernels._triton.availability import run_lazily, why_unsupported_attention

from .score_blocks import head_blocks, scores

define("attention_entropy(Tensor q, Tensor k, float scale, str? backend=None) -> (Tensor, Tensor)")
define(
    "_attention_entropy_backward(Tensor grad_entropy, Tensor grad_lse, Tensor q, Tensor k, Tensor entropy, Tensor lse,"
    " float scale) -> (Tensor, Tensor)"
)
# implemented by the compiled extension, csrc/cpu/
define("_attention_entropy_cpp(Tensor q, Tensor k, float scale) -> (Tensor, Tensor)")


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


def cpp(q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """One streaming pass over packed keys: the score block never leaves the cache."""
    result: tuple[Tensor, Tensor] = torch.ops.nerve_kernels._attention_entropy_cpp(q, k, scale)
    return result


def _run(q: Tensor, k: Tensor, scale: float, backend: str | None = None) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = dispatch.choose("attention_entropy", backend, (q, k))(q, k, scale)
    return result


def _fake(q: Tensor, k: Tensor, scale: float, backend: str | None = None) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(q, k)
    return q.new_empty(q.shape[:3], dtype=dtype), q.new_empty(q.shape[:3], dtype=dtype)


def _run_backward(
    grad_entropy: Tensor, grad_lse: Tensor, q: Tensor, k: Tensor, entropy: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """ds = p · (g_lse − g_𝓗 (log p + 𝓗)), with log p = s − lse; then dq = scale · ds k and dk = scale · dsᵀ q."""
    grad_q = torch.empty_like(q, dtype=lse.dtype)
    grad_k = torch.zeros_like(k, dtype=lse.dtype)
    for index, rows in head_blocks(q, k):
        log_p = scores(q[index][rows], k[index], scale, lse.dtype).sub_(lse[index][rows].unsqueeze(-1))
        p = log_p.exp()
        inner = log_p.clamp_(min=torch.finfo(lse.dtype).min).add_(entropy[index][rows].unsqueeze(-1))
        grad_scores = inner.mul_(-grad_entropy[index][rows].unsqueeze(-1)).add_(grad_lse[index][rows].unsqueeze(-1))
        grad_scores.mul_(p)
        grad_q[index][rows] = scale * (grad_scores @ k[index].to(lse.dtype))
        grad_k[index] += scale * (grad_scores.transpose(-1, -2) @ q[index][rows].to(lse.dtype))
    return grad_q.to(q.dtype), grad_k.to(k.dtype)


def _fake_backward(
    grad_entropy: Tensor, grad_lse: Tensor, q: Tensor, k: Tensor, entropy: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, ctx.scale, _ = inputs
    ctx.save_for_backward(q, k, *output)


def _backward(ctx: Any, grad_entropy: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    q, k, entropy, lse = ctx.saved_tensors
    grad_q, grad_k = torch.ops.nerve_kernels._attention_entropy_backward(
        grad_entropy, grad_lse, q, k, entropy, lse, ctx.scale
    )
    return grad_q, grad_k, None, None


implement("attention_entropy", _run, _fake)
implement("_attention_entropy_backward", _run_backward, _fake_backward)
torch.library.register_fake("nerve_kernels::_attention_entropy_cpp", _fake)
differentiate("attention_entropy", _backward, _setup_context)
fold_batch("attention_entropy")
dispatch.register("attention_entropy", "eager", eager)
dispatch.register("attention_entropy", "cpp", cpp, dispatch.why_unsupported_cpp)
dispatch.register("attention_entropy", "triton", run_lazily("attention.attention_entropy"), why_unsupported_attention)
