"""window_product: S_local @ P, each token's weighted sum over its window, without ever making S dense."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nerve_kernels._affinity_arguments import sum_to_batch
from nerve_kernels._operators import dispatch
from nerve_kernels._operators.library import accumulation_dtype, define, differentiate, fold_batch, implement
from nerve_kernels._triton.availability import run_lazily, why_unsupported_walk

from .window_tiles import TileGeometry, tile_values, tiled_product, transpose_values, values_gradient

define("window_product(Tensor values, Tensor p, SymInt[] grid, SymInt[] window, str? backend=None) -> Tensor")
define(
    "_window_product_backward(Tensor grad, Tensor values, Tensor p, SymInt[] grid, SymInt[] window) -> (Tensor, Tensor)"
)
# implemented by the compiled extension, csrc/cpu/
define("_window_product_cpp(Tensor values, Tensor p, SymInt[] grid, SymInt[] window) -> Tensor")
define("_window_gradient_cpp(Tensor left, Tensor p, SymInt[] grid, SymInt[] window) -> Tensor")


def _geometry(grid: list[int], window: list[int]) -> TileGeometry:
    return TileGeometry((grid[0], grid[1]), (window[0], window[1]))


def eager(values: Tensor, p: Tensor, grid: list[int], window: list[int]) -> Tensor:
    """Batched matrix products over tiles, accumulated in float32 or better, returned in P's dtype."""
    dtype, geometry = accumulation_dtype(values, p), _geometry(grid, window)
    return tiled_product(tile_values(values.to(dtype), geometry), p.to(dtype), geometry).to(p.dtype)


def cpp(values: Tensor, p: Tensor, grid: list[int], window: list[int]) -> Tensor:
    """The compiled kernel."""
    result: Tensor = torch.ops.nerve_kernels._window_product_cpp(values, p, grid, window)
    return result


def _run(values: Tensor, p: Tensor, grid: list[int], window: list[int], backend: str | None = None) -> Tensor:
    result: Tensor = dispatch.choose("window_product", backend, (values, p))(values, p, grid, window)
    return result


def _fake(values: Tensor, p: Tensor, grid: list[int], window: list[int], backend: str | None = None) -> Tensor:
    return p.new_empty((max(values.shape[0], p.shape[0]), *p.shape[1:]))


def _fake_cpp(values: Tensor, p: Tensor, grid: list[int], window: list[int]) -> Tensor:
    return _fake(values, p, grid, window)


def _fake_gradient_cpp(left: Tensor, p: Tensor, grid: list[int], window: list[int]) -> Tensor:
    return p.new_empty((*p.shape[:2], window[0] * window[1]), dtype=accumulation_dtype(left, p))


def _run_backward(grad: Tensor, values: Tensor, p: Tensor, grid: list[int], window: list[int]) -> tuple[Tensor, Tensor]:
    """dP = S_localᵀ g, itself a window product; dvalues[i, o] = Σ_c g[i, c] P[i + o, c]."""
    dtype, geometry = accumulation_dtype(values, p), _geometry(grid, window)
    wide_grad, wide_p, wide_values = grad.to(dtype), p.to(dtype), values.to(dtype)
    grad_values = values_gradient(wide_grad, wide_p, geometry)
    grad_p = tiled_product(tile_values(transpose_values(wide_values, geometry), geometry), wide_grad, geometry)
    return (
        sum_to_batch(grad_values, values.shape[0]).to(values.dtype),
        sum_to_batch(grad_p, p.shape[0]).to(p.dtype),
    )


def _fake_backward(
    grad: Tensor, values: Tensor, p: Tensor, grid: list[int], window: list[int]
) -> tuple[Tensor, Tensor]:
    return values.new_empty(values.shape), p.new_empty(p.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, p, ctx.grid, ctx.window, _ = inputs
    ctx.save_for_backward(values, p)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.nerve_kernels._window_product_backward(grad, *ctx.saved_tensors, ctx.grid, ctx.window)
    return *grads, None, None, None


implement("window_product", _run, _fake)
implement("_window_product_backward", _run_backward, _fake_backward)
torch.library.register_fake("nerve_kernels::_window_product_cpp", _fake_cpp)
torch.library.register_fake("nerve_kernels::_window_gradient_cpp", _fake_gradient_cpp)
differentiate("window_product", _backward, _setup_context)
fold_batch("window_product", broadcastable=(0, 1))
dispatch.register("window_product", "eager", eager)
dispatch.register("window_product", "cpp", cpp, dispatch.why_unsupported_cpp)
dispatch.register("window_product", "triton", run_lazily("walk.window_product"), why_unsupported_walk)
