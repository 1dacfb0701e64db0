"""attention_marginal: the mean attention each key receives, mⱼ = (1/N) Σᵢ e^{sᵢⱼ − lseᵢ}, in blocks of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nerve_kernels._operators import dispatch
from nerve_kernels._operators.library import define, differentiate, fold_batch, implement
from nerve_kernels._triton.availability import run_lazily, why_unsupported_attention

from .score_blocks import head_blocks, probabilities

define("attention_marginal(Tensor q, Tensor k, Tensor lse, float scale, str? backend=None) -> Tensor")
define(
    "_attention_marginal_backward(Tensor grad, Tensor q, Tensor k, Tensor lse, float scale) -> (Tensor, Tensor, Tensor)"
)
# implemented by the compiled extension, csrc/cpu/
define("_attention_marginal_cpp(Tensor q, Tensor k, Tensor lse, float scale) -> Tensor")


def eager(q: Tensor, k: Tensor, lse: Tensor, scale: float) -> Tensor:
    """Column sums of one block of attention rows after the other, divided by N at the end."""
    marginal = lse.new_zeros(k.shape[:3])
    for index, rows in head_blocks(q, k):
        marginal[index] += probabilities(q[index][rows], k[index], lse[index][rows], scale).sum(0)
    return marginal / max(1, q.shape[2])


def cpp(q: Tensor, k: Tensor, lse: Tensor, scale: float) -> Tensor:
    """Strips of keys, each summed over all queries by one task."""
    result: Tensor = torch.ops.nerve_kernels._attention_marginal_cpp(q, k, lse, scale)
    return result


def _run(q: Tensor, k: Tensor, lse: Tensor, scale: float, backend: str | None = None) -> Tensor:
    result: Tensor = dispatch.choose("attention_marginal", backend, (q, k, lse))(q, k, lse, scale)
    return result


def _fake(q: Tensor, k: Tensor, lse: Tensor, scale: float, backend: str | None = None) -> Tensor:
    return lse.new_empty(k.shape[:3])


def _run_backward(grad: Tensor, q: Tensor, k: Tensor, lse: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """ds = p · g/N; lse enters as −s does, so d lse = −Σⱼ ds."""
    grad_q = torch.empty_like(q, dtype=lse.dtype)
    grad_k = torch.zeros_like(k, dtype=lse.dtype)
    grad_lse = torch.empty_like(lse)
    for index, rows in head_blocks(q, k):
        grad_scores = probabilities(q[index][rows], k[index], lse[index][rows], scale)
        grad_scores.mul_(grad[index] / q.shape[2])
        grad_lse[index][rows] = -grad_scores.sum(-1)
        grad_q[index][rows] = scale * (grad_scores @ k[index].to(lse.dtype))
        grad_k[index] += scale * (grad_scores.transpose(-1, -2) @ q[index][rows].to(lse.dtype))
    return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_lse


def _fake_backward(grad: Tensor, q: Tensor, k: Tensor, lse: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(lse)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, lse, ctx.scale, _ = inputs
    ctx.save_for_backward(q, k, lse)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.nerve_kernels._attention_marginal_backward(grad, *ctx.saved_tensors, ctx.scale)
    return *grads, None, None


implement("attention_marginal", _run, _fake)
implement("_attention_marginal_backward", _run_backward, _fake_backward)
torch.library.register_fake("nerve_kernels::_attention_marginal_cpp", _fake)
differentiate("attention_marginal", _backward, _setup_context)
fold_batch("attention_marginal")
dispatch.register("attention_marginal", "eager", eager)
dispatch.register("attention_marginal", "cpp", cpp, dispatch.why_unsupported_cpp)
dispatch.register("attention_marginal", "triton", run_lazily("attention.attention_marginal"), why_unsupported_attention)
