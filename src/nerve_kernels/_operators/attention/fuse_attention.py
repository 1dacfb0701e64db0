"""fuse_attention and fuse_attention_maps: A_w = Σ_h w_h A⁽ʰ⁾, the only operators that return a dense map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nerve_kernels._operators import dispatch
from nerve_kernels._operators.library import accumulation_dtype, define, differentiate, fold_batch, implement
from nerve_kernels._triton.availability import run_lazily, why_unsupported_attention, why_unsupported_maps

from .score_blocks import probabilities, row_blocks

define("fuse_attention(Tensor q, Tensor k, Tensor w, Tensor lse, float scale, str? backend=None) -> Tensor")
define(
    "_fuse_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor w, Tensor lse, float scale)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
define("fuse_attention_maps(Tensor maps, Tensor w, str? backend=None) -> Tensor")
define("_fuse_attention_maps_backward(Tensor grad, Tensor maps, Tensor w) -> (Tensor, Tensor)")
# implemented by the compiled extension, csrc/cpu/
define("_fuse_attention_cpp(Tensor q, Tensor k, Tensor w, Tensor lse, float scale) -> Tensor")
define("_fuse_attention_maps_cpp(Tensor maps, Tensor w) -> Tensor")


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


def cpp(q: Tensor, k: Tensor, w: Tensor, lse: Tensor, scale: float) -> Tensor:
    """Strips of the map, heads summed while they are in the cache."""
    result: Tensor = torch.ops.nerve_kernels._fuse_attention_cpp(q, k, w, lse, scale)
    return result


def _run(q: Tensor, k: Tensor, w: Tensor, lse: Tensor, scale: float, backend: str | None = None) -> Tensor:
    result: Tensor = dispatch.choose("fuse_attention", backend, (q, k, w, lse))(q, k, w, lse, scale)
    return result


def _fake(q: Tensor, k: Tensor, w: Tensor, lse: Tensor, scale: float, backend: str | None = None) -> Tensor:
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
        weighted = probabilities(q[b, h, rows], k[b, h], lse[b, h, rows], scale).mul_(grad_rows)
        grad_w[b, h] += weighted.sum()
        grad_scores = weighted.mul_(w[b, h].to(lse.dtype))
        grad_lse[b, h, rows] = -grad_scores.sum(-1)
        grad_q[b, h, rows] = scale * (grad_scores @ k[b, h].to(lse.dtype))
        grad_k[b, h] += scale * (grad_scores.transpose(-1, -2) @ q[b, h, rows].to(lse.dtype))


def empty_gradients(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Zeros for the gradients of q, k, w, lse, in the precision of lse."""
    return tuple(torch.zeros_like(item, dtype=inputs[3].dtype) for item in inputs)


def _run_backward(
    grad: Tensor, q: Tensor, k: Tensor, w: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = (q, k, w, lse)
    grads = empty_gradients(inputs)
    for b, rows in row_blocks(q, k):
        accumulate_block_gradients(grad[b, rows].to(lse.dtype), inputs, grads, scale, b, rows)
    return grads[0].to(q.dtype), grads[1].to(k.dtype), grads[2].to(w.dtype), grads[3]


def _fake_backward(
    grad: Tensor, q: Tensor, k: Tensor, w: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(w), torch.empty_like(lse)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.nerve_kernels._fuse_attention_backward(grad, *ctx.saved_tensors, ctx.scale)
    return *grads, None, None


def eager_maps(maps: Tensor, w: Tensor) -> Tensor:
    """Σ_h w_h A⁽ʰ⁾ with one read of the maps and a float32 accumulator of one map."""
    dtype = accumulation_dtype(maps, w)
    fused = maps.new_empty((maps.shape[0], *maps.shape[2:]))
    for b in range(maps.shape[0]):
        total = maps.new_zeros(maps.shape[2:], dtype=dtype)
        for h in range(maps.shape[1]):
            total.addcmul_(maps[b, h].to(dtype), w[b, h].to(dtype))
        fused[b] = total.to(maps.dtype)
    return fused


def cpp_maps(maps: Tensor, w: Tensor) -> Tensor:
    """One read of the maps, one write of the sum."""
    result: Tensor = torch.ops.nerve_kernels._fuse_attention_maps_cpp(maps, w)
    return result


def _run_maps(maps: Tensor, w: Tensor, backend: str | None = None) -> Tensor:
    result: Tensor = dispatch.choose("fuse_attention_maps", backend, (maps, w))(maps, w)
    return result


def _fake_maps(maps: Tensor, w: Tensor, backend: str | None = None) -> Tensor:
    return maps.new_empty((maps.shape[0], *maps.shape[2:]))


def _run_maps_backward(grad: Tensor, maps: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(maps, w)
    grad_maps = (grad.to(dtype).unsqueeze(1) * w.to(dtype)[:, :, None, None]).to(maps.dtype)
    grad_w = torch.stack([(grad.to(dtype) * maps[:, h].to(dtype)).sum((-1, -2)) for h in range(maps.shape[1])], dim=1)
    return grad_maps, grad_w.to(w.dtype)


def _fake_maps_backward(grad: Tensor, maps: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(maps, memory_format=torch.contiguous_format), w.new_empty(w.shape)


def _setup_maps_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])


def _backward_maps(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.nerve_kernels._fuse_attention_maps_backward(grad, *ctx.saved_tensors), None


implement("fuse_attention", _run, _fake)
implement("_fuse_attention_backward", _run_backward, _fake_backward)
torch.library.register_fake("nerve_kernels::_fuse_attention_cpp", _fake)
differentiate("fuse_attention", _backward, _setup_context)
fold_batch("fuse_attention")
dispatch.register("fuse_attention", "eager", eager)
dispatch.register("fuse_attention", "cpp", cpp, dispatch.why_unsupported_cpp)
dispatch.register("fuse_attention", "triton", run_lazily("attention.fuse_attention"), why_unsupported_attention)

implement("fuse_attention_maps", _run_maps, _fake_maps)
implement("_fuse_attention_maps_backward", _run_maps_backward, _fake_maps_backward)
torch.library.register_fake("nerve_kernels::_fuse_attention_maps_cpp", _fake_maps)
differentiate("fuse_attention_maps", _backward_maps, _setup_maps_context)
fold_batch("fuse_attention_maps")
dispatch.register("fuse_attention_maps", "eager", eager_maps)
dispatch.register("fuse_attention_maps", "cpp", cpp_maps, dispatch.why_unsupported_cpp)
dispatch.register("fuse_attention_maps", "triton", run_lazily("attention.fuse_attention_maps"), why_unsupported_maps)
