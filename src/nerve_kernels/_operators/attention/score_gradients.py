"""The pass over the scores that the gradients of all operators on q and k share.

Whatever is made of the attention p = softmax(s) of a row, the gradient of a score is, with x = s − lse,

    ds = p · (a + b x + local) + γ p' · (c + pooled),  p' = e^{γ s − cell_lse}, which is p where γ = 1,

where a, b and c are numbers of the row, ``local`` is a number for each token of its window and ``pooled`` one for each
cell of keys. Then dq = scale · ds k and dk = scale · dsᵀ q. The operators differ in these numbers only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nerve_kernels._operators.cell_pooling import gather_cells
from nerve_kernels._operators.library import Gradient, define_native
from nerve_kernels._triton.availability import run_lazily
from nerve_kernels.grids import window_neighbours

from .score_blocks import head_blocks, scores

Pass = Callable[..., tuple[Tensor, Tensor, Tensor]]


def eager(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    cell_lse: Tensor | None,
    c: Tensor | None,
    local: Tensor | None,
    pooled: Tensor | None,
    grid: list[int],
    window: list[int],
    cells: list[int],
    scale: float,
    sharpness: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and the sum of each row's ds, one block of rows at a time.

    Args:
        q: (B, heads, N, d).
        k: (B, heads, N_k, d).
        lse: (B, heads, N); everything is summed in its dtype.
        a: (B, heads, N); None: zeros.
        b: Likewise.
        cell_lse: Likewise; needed where γ is not 1.
        c: Likewise; where γ is 1 it belongs to ``a``.
        local: (B, heads, N, kh·kw); what lies off the grid is not looked at.
        pooled: (B, heads, N, h·w).
        grid: (H, W) of the keys; with ``local``, of the queries too.
        window: (kh, kw).
        cells: (h, w).
        scale: Of the scores.
        sharpness: γ.
    """
    dtype = lse.dtype
    grad_q = torch.empty(q.shape, dtype=dtype, device=q.device)
    grad_k = torch.zeros(k.shape, dtype=dtype, device=k.device)
    row_sums = torch.empty_like(lse, memory_format=torch.contiguous_format)
    lowest = torch.finfo(dtype).min
    neighbour = inside = None
    if local is not None:
        neighbour, inside = window_neighbours((grid[0], grid[1]), (window[0], window[1]), q.device)
    for index, rows in head_blocks(q, k):
        block = scores(q[index][rows], k[index], scale, dtype)
        sharp = None
        if cell_lse is not None and sharpness != 1:
            sharp = (sharpness * block).sub_(_column(cell_lse, index, rows)).exp_()
        log_p = block.sub_(_column(lse, index, rows))
        p = log_p.exp()
        # a masked key (score −inf) has p = 0 and must give 0, not 0 · −inf
        inner = torch.zeros_like(p) if b is None else log_p.clamp(min=lowest).mul_(_column(b, index, rows))
        if a is not None:
            inner.add_(_column(a, index, rows))
        if local is not None and neighbour is not None and inside is not None:
            inner.scatter_add_(1, neighbour[rows], torch.where(inside[rows], local[index][rows].to(dtype), 0))
        of_cells = None if pooled is None else gather_cells(pooled[index][rows].to(dtype), grid, cells)
        if of_cells is not None and sharp is None:
            inner.add_(of_cells)
        grad_scores = inner.mul_(p)
        if of_cells is not None and sharp is not None:
            of_cells = of_cells if c is None else of_cells + _column(c, index, rows)
            grad_scores.add_(of_cells * sharp, alpha=sharpness)
        row_sums[index][rows] = grad_scores.sum(-1)
        grad_q[index][rows] = scale * (grad_scores @ k[index].to(dtype))
        grad_k[index] += scale * (grad_scores.transpose(-1, -2) @ q[index][rows].to(dtype))
    return grad_q, grad_k, row_sums


def _column(numbers: Tensor, index: tuple[int, int], rows: slice) -> Tensor:
    """A number a row of a block, (rows, 1)."""
    return numbers[index][rows].unsqueeze(-1)


def fake(q: Tensor, k: Tensor, lse: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """As q and k, and a number a row."""
    return lse.new_empty(q.shape), lse.new_empty(k.shape), lse.new_empty(lse.shape)


attention_gradient_cpp = define_native(
    "_attention_gradient_cpp(Tensor q, Tensor k, Tensor lse, Tensor? a, Tensor? b, Tensor? cell_lse, Tensor? c,"
    " Tensor? local, Tensor? pooled, SymInt[] grid, SymInt[] window, SymInt[] cells, float scale, float sharpness)"
    " -> (Tensor, Tensor, Tensor)",
    fake,
)


def gradient_of_scores(formula: Callable[..., tuple[Tensor, ...]], **options: Any) -> Gradient:
    """A gradient made of one pass: ``formula`` takes the pass, then what implementations of a gradient take."""
    passes = eager, attention_gradient_cpp, run_lazily("attention.attention_gradient")
    on_eager, on_cpp, on_triton = (partial(formula, run) for run in passes)
    return Gradient(on_eager, cpp=on_cpp, triton=on_triton, **options)


def fused_gradients(
    run: Pass,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    w: Tensor,
    lse: Tensor,
    grid: list[int],
    cells: list[int],
    scale: float,
) -> tuple[Tensor, ...]:
    """Of q, k, w and lse, from those of the sums of the fused map over cells, (B, N, h·w).

    With r the row sums of p · g: ds_h = w_h p_h g, dw_h = Σ r_h; lse enters as −s does, so d lse = −w_h r_h.
    """
    pooled = grad.unsqueeze(1).expand(-1, q.shape[1], -1, -1)
    grad_q, grad_k, sums = run(
        q, k, lse, None, None, None, None, None, pooled, grid, [1, 1], cells, scale, 1.0
    )  # fmt: skip
    weight = w.to(lse.dtype).unsqueeze(-1)
    return weight.unsqueeze(-1) * grad_q, weight.unsqueeze(-1) * grad_k, sums.sum(-1), -weight * sums
