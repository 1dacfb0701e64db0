"""local_affinity: Σ_h w_h e^{s − lse} inside a k × k window around each token, rows renormalised, (B, N, kh·kw).

Scores outside the window are never computed: for each of the kh·kw offsets the query grid is multiplied with the
shifted key grid, on the rectangle where both lie inside the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nerve_kernels._operators.library import Gradient, Operator, define_native
from nerve_kernels._triton.availability import why_unsupported_heads
from nerve_kernels.grids import MIN_WINDOW_MASS

Rectangle = tuple[slice, slice]


def shifted_rectangles(grid: list[int], window: list[int]) -> Iterator[tuple[int, Rectangle, Rectangle]]:
    """For each window column: the tokens that have this neighbour, and those neighbours, as rectangles of the grid."""
    height, width = grid
    for column in range(window[0] * window[1]):
        dy, dx = column // window[1] - window[0] // 2, column % window[1] - window[1] // 2
        if abs(dy) < height and abs(dx) < width:
            here = slice(max(0, -dy), min(height, height - dy)), slice(max(0, -dx), min(width, width - dx))
            there = slice(max(0, dy), min(height, height + dy)), slice(max(0, dx), min(width, width + dx))
            yield column, here, there


def _on_grid(tensor: Tensor, grid: list[int], dtype: torch.dtype) -> Tensor:
    """(B, heads, N, …) -> (B, heads, H, W, …)."""
    return tensor.to(dtype).unflatten(2, tuple(grid))


def window_sums(
    q: Tensor, k: Tensor, w: Tensor, lse: Tensor, grid: list[int], window: list[int], scale: float
) -> Tensor:
    """z[i, o] = Σ_h w_h e^{scale · qᵢ·k_{i+o} − lseᵢ}, 0 outside the grid, (B, H, W, kh·kw)."""
    dtype = lse.dtype
    q_grid, k_grid, lse_grid = _on_grid(q, grid, dtype) * scale, _on_grid(k, grid, dtype), _on_grid(lse, grid, dtype)
    head_weight = w.to(dtype)[:, :, None, None]
    sums = lse.new_zeros((q.shape[0], *grid, window[0] * window[1]))
    for column, (y, x), (key_y, key_x) in shifted_rectangles(grid, window):
        score = (q_grid[:, :, y, x] * k_grid[:, :, key_y, key_x]).sum(-1)
        sums[:, y, x, column] = (score.sub_(lse_grid[:, :, y, x]).exp_() * head_weight).sum(1)
    return sums


def eager(
    q: Tensor, k: Tensor, w: Tensor, lse: Tensor, grid: list[int], window: list[int], scale: float, normalize: bool
) -> Tensor:
    """Window sums, divided by their row's sum; a row without mass becomes the identity."""
    sums = window_sums(q, k, w, lse, grid, window, scale).flatten(1, 2)
    return normalize_window_rows(sums) if normalize else sums


def normalize_window_rows(sums: Tensor) -> Tensor:
    """Rows divided by their sum; a row below the mass floor becomes 1 at its own token and 0 elsewhere."""
    mass = sums.sum(-1, keepdim=True)
    columns = torch.arange(sums.shape[-1], device=sums.device)
    identity = (columns == sums.shape[-1] // 2).to(sums.dtype)
    return torch.where(mass < MIN_WINDOW_MASS, identity, sums / mass)


def fake(q: Tensor, k: Tensor, w: Tensor, lse: Tensor, grid: list[int], window: list[int], *options: Any) -> Tensor:
    """Window values."""
    return lse.new_empty((q.shape[0], q.shape[2], window[0] * window[1]))


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    w: Tensor,
    lse: Tensor,
    grid: list[int],
    window: list[int],
    scale: float,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """With z the window sums and Z their row sum: dz = (g − Σ g z/Z)/Z, then ds_h = w_h p_h dz and d lse = −Σ ds."""
    dtype = lse.dtype
    grad_sums = grad.to(dtype).unflatten(1, tuple(grid))
    if normalize:
        sums = window_sums(q, k, w, lse, grid, window, scale)
        mass = sums.sum(-1, keepdim=True)
        expected = (grad_sums * sums).sum(-1, keepdim=True) / mass
        grad_sums = torch.where(mass < MIN_WINDOW_MASS, 0, (grad_sums - expected) / mass)
    q_grid, k_grid, lse_grid = _on_grid(q, grid, dtype), _on_grid(k, grid, dtype), _on_grid(lse, grid, dtype)
    head_weight = w.to(dtype)[:, :, None, None]
    grad_q, grad_k = (torch.zeros_like(item, memory_format=torch.contiguous_format) for item in (q_grid, k_grid))
    grad_w = torch.zeros(w.shape, dtype=dtype, device=w.device)
    grad_lse = torch.zeros_like(lse_grid, memory_format=torch.contiguous_format)
    for column, (y, x), (key_y, key_x) in shifted_rectangles(grid, window):
        query, key = q_grid[:, :, y, x], k_grid[:, :, key_y, key_x]
        p = ((query * key).sum(-1) * scale - lse_grid[:, :, y, x]).exp_()
        weighted = p * grad_sums[:, y, x, column].unsqueeze(1)
        grad_w += weighted.sum((-1, -2))
        grad_scores = weighted * head_weight
        grad_lse[:, :, y, x] -= grad_scores
        grad_q[:, :, y, x] += scale * grad_scores.unsqueeze(-1) * key
        grad_k[:, :, key_y, key_x] += scale * grad_scores.unsqueeze(-1) * query
    return grad_q.flatten(2, 3), grad_k.flatten(2, 3), grad_w, grad_lse.flatten(2, 3)


local_gradient_cpp = define_native(
    "_local_gradient_cpp(Tensor grad, Tensor q, Tensor k, Tensor w, Tensor lse, SymInt[] grid, SymInt[] window,"
    " float scale, bool normalize) -> (Tensor, Tensor, Tensor, Tensor)",
    lambda grad, *inputs: tuple(grad.new_empty(item.shape) for item in inputs[:4]),
)

local_affinity = Operator(
    "local_affinity(Tensor q, Tensor k, Tensor w, Tensor lse, SymInt[] grid, SymInt[] window, float scale,"
    " bool normalize=True) -> Tensor",
    eager=eager,
    fake=fake,
    backward=Gradient(backward, cpp=local_gradient_cpp, triton="attention.local_gradient"),
    triton="attention.local_affinity",
    why_not_triton=why_unsupported_heads,
)
