"""fuse_attention_maps: A_w = Σ_h w_h A⁽ʰ⁾ of explicit attention maps."""

from __future__ import annotations

import torch
from torch import Tensor

from nerve_kernels._operators.library import Gradient, Operator, accumulation_dtype, define_native


def eager(maps: Tensor, w: Tensor, widen: bool) -> Tensor:
    """Σ_h w_h A⁽ʰ⁾ with one read of the maps and a float32 accumulator of one map."""
    dtype = accumulation_dtype(maps, w)
    fused = fake(maps, w, widen)
    for b in range(maps.shape[0]):
        total = maps.new_zeros(maps.shape[2:], dtype=dtype)
        for h in range(maps.shape[1]):
            total.addcmul_(maps[b, h].to(dtype), w[b, h].to(dtype))
        fused[b] = total.to(fused.dtype)
    return fused


def fake(maps: Tensor, w: Tensor, widen: bool) -> Tensor:
    """A dense map in the dtype of the maps, or in that of the sums."""
    dtype = accumulation_dtype(maps, w) if widen else maps.dtype
    return maps.new_empty((maps.shape[0], *maps.shape[2:]), dtype=dtype)


def backward(grad: Tensor, maps: Tensor, w: Tensor, widen: bool) -> tuple[Tensor, Tensor]:
    """dA⁽ʰ⁾ = w_h g and dw_h = Σ g A⁽ʰ⁾."""
    dtype = accumulation_dtype(maps, w)
    grad_maps = (grad.to(dtype).unsqueeze(1) * w.to(dtype)[:, :, None, None]).to(maps.dtype)
    grad_w = torch.stack([(grad.to(dtype) * maps[:, h].to(dtype)).sum((-1, -2)) for h in range(maps.shape[1])], dim=1)
    return grad_maps, grad_w


fuse_attention_maps_backward_cpp = define_native(
    "_fuse_attention_maps_backward_cpp(Tensor grad, Tensor maps, Tensor w) -> (Tensor, Tensor)",
    lambda grad, maps, w: (maps.new_empty(maps.shape), w.new_empty(w.shape, dtype=accumulation_dtype(maps, w))),
)


def _backward_cpp(grad: Tensor, maps: Tensor, w: Tensor, widen: bool) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = fuse_attention_maps_backward_cpp(grad.unsqueeze(1), maps, w)
    return found


fuse_attention_maps = Operator(
    "fuse_attention_maps(Tensor maps, Tensor w, bool widen=False) -> Tensor",
    eager=eager,
    fake=fake,
    backward=Gradient(backward, cpp=_backward_cpp, triton="attention.fuse_attention_maps_gradient"),
    triton="attention.fuse_attention_maps",
)
