"""local_affinity: Σ_h w_h e^{s − lse} inside a k × k window around each token, rows renormalised, (B, N, kh·kw).

Scores outside the window are never computed: for each of the kh·kw offsets the query grid is multiplied with the
shifted key grid, on the rectangle where both lie inside the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nerve_kernels._operators import dispatch
from nerve_kernels._operators.library import define, differentiate, fold_batch, implement
from nerve_kernels._triton.availability import run_lazily, why_unsupported_attention
from nerve_kernels.grids import MIN_WINDOW_MASS

define(
    "local_affinity(Tensor q, Tensor k, Tensor w, Tensor lse, SymInt[] grid, SymInt[] window, float scale,"
    " bool normalize=True, str? backend=None) -> Tensor"
)
define(
    "_local_affinity_backward(Tensor grad, Tensor q, Tensor k, Tensor w, Tensor lse, SymInt[] grid, SymInt[] window,"
    " float scale, bool normalize) -> (Tensor, Tensor, Tensor, Tensor)"
)
# implemented by the compiled extension, csrc/cpu/
define(
    "_local_affinity_cpp(Tensor q, Tensor k, Tensor w, Tensor lse, SymInt[] grid, SymInt[] window, float scale,"
    " bool normalize) -> Tensor"
)


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


def cpp(
    q: Tensor, k: Tensor, w: Tensor, lse: Tensor, grid: list[int], window: list[int], scale: float, normalize: bool
) -> Tensor:
    """Scores of the window only, a grid row of queries against the grid rows of keys that it sees."""
    result: Tensor = torch.ops.nerve_kernels._local_affinity_cpp(q, k, w, lse, grid, window, scale, normalize)
    return result


def normalize_window_rows(sums: Tensor) -> Tensor:
    """Rows divided by their sum; a row below the mass floor becomes 1 at its own token and 0 elsewhere."""
    mass = sums.sum(-1, keepdim=True)
    columns = torch.arange(sums.shape[-1], device=sums.device)
    identity = (columns == sums.shape[-1] // 2).to(sums.dtype)
    return torch.where(mass < MIN_WINDOW_MASS, identity, sums / mass)


def _run(
    q: Tensor,
    k: Tensor,
    w: Tensor,
    lse: Tensor,
    grid: list[int],
    window: list[int],
    scale: float,
    normalize: bool = True,
    backend: str | None = None,
) -> Tensor:
    run = dispatch.choose("local_affinity", backend, (q, k, w, lse))
    result: Tensor = run(q, k, w, lse, grid, window, scale, normalize)
    return result


def _fake(
    q: Tensor,
    k: Tensor,
    w: Tensor,
    lse: Tensor,
    grid: list[int],
    window: list[int],
    scale: float,
    normalize: bool = True,
    backend: str | None = None,
) -> Tensor:
    return lse.new_empty((q.shape[0], q.shape[2], window[0] * window[1]))


def _run_backward(
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
    return (
        grad_q.flatten(2, 3).to(q.dtype),
        grad_k.flatten(2, 3).to(k.dtype),
        grad_w.to(w.dtype),
        grad_lse.flatten(2, 3),
    )


def _fake_backward(
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
    return q.new_empty(q.shape), k.new_empty(k.shape), w.new_empty(w.shape), lse.new_empty(lse.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, w, lse, ctx.grid, ctx.window, ctx.scale, ctx.normalize, _ = inputs
    ctx.save_for_backward(q, k, w, lse)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.nerve_kernels._local_affinity_backward(
        grad, *ctx.saved_tensors, ctx.grid, ctx.window, ctx.scale, ctx.normalize
    )
    return *grads, None, None, None, None, None


implement("local_affinity", _run, _fake)
implement("_local_affinity_backward", _run_backward, _fake_backward)
torch.library.register_fake("nerve_kernels::_local_affinity_cpp", _fake)
differentiate("local_affinity", _backward, _setup_context)
fold_batch("local_affinity")
dispatch.register("local_affinity", "eager", eager)
dispatch.register("local_affinity", "cpp", cpp, dispatch.why_unsupported_cpp)
dispatch.register("local_affinity", "triton", run_lazily("attention.local_affinity"), why_unsupported_attention)
