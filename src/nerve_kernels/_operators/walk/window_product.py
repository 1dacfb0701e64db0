"""window_product: S_local @ P, each token's weighted sum over its window, without ever making S dense."""

from __future__ import annotations

from torch import Tensor

from nerve_kernels._operators.library import Operator, accumulation_dtype, define_native

from .window_tiles import TileGeometry, tile_values, tiled_product, transpose_values, values_gradient


def eager(values: Tensor, p: Tensor, grid: list[int], window: list[int]) -> Tensor:
    """Batched matrix products over tiles, accumulated in float32 or better, returned in P's dtype."""
    dtype, geometry = accumulation_dtype(values, p), TileGeometry.of(grid, window)
    return tiled_product(tile_values(values.to(dtype), geometry), p.to(dtype), geometry).to(p.dtype)


def fake(values: Tensor, p: Tensor, grid: list[int], window: list[int]) -> Tensor:
    """P's shape, in the larger batch of the two."""
    return p.new_empty((max(values.shape[0], p.shape[0]), *p.shape[1:]))


def backward(grad: Tensor, values: Tensor, p: Tensor, grid: list[int], window: list[int]) -> tuple[Tensor, Tensor]:
    """dP = S_localᵀ g, itself a window product; dvalues[i, o] = Σ_c g[i, c] P[i + o, c]."""
    dtype, geometry = accumulation_dtype(values, p), TileGeometry.of(grid, window)
    grad, p, values = grad.to(dtype), p.to(dtype), values.to(dtype)
    transposed = tile_values(transpose_values(values, geometry), geometry)
    return values_gradient(grad, p, geometry), tiled_product(transposed, grad, geometry)


def fake_gradient(left: Tensor, p: Tensor, grid: list[int], window: list[int]) -> Tensor:
    """The gradient of window values."""
    return p.new_empty((*p.shape[:2], window[0] * window[1]), dtype=accumulation_dtype(left, p))


window_product = Operator(
    "window_product(Tensor values, Tensor p, SymInt[] grid, SymInt[] window) -> Tensor",
    eager=eager,
    fake=fake,
    backward=backward,
    triton="walk.window_product",
    broadcasts=("values", "p"),
)
window_gradient_cpp = define_native(
    "_window_gradient_cpp(Tensor left, Tensor p, SymInt[] grid, SymInt[] window) -> Tensor", fake_gradient
)
