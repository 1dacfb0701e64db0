"""attention_statistics: of every head, entropy and lse of each row, its attention to its window and to each cell.

Window and cells hold shares of the row's whole attention, so that any Σ_h w_h of them is what the fused map would give;
the cells are those of softmax(γ · scores), whose own logarithm of the sum is ``cell_lse`` (for γ = 1 that is ``lse``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nerve_kernels._operators.cell_pooling import sum_cells
from nerve_kernels._operators.library import Operator, accumulation_dtype, define_native
from nerve_kernels._triton.availability import run_lazily, why_unsupported_heads
from nerve_kernels.grids import window_neighbours

from .overflow import refusing_overflow
from .score_blocks import head_blocks, scores
from .score_gradients import Pass, gradient_of_scores

Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def eager(
    q: Tensor,
    k: Tensor,
    grid: list[int],
    window: list[int],
    cells: list[int],
    scale: float,
    sharpness: float,
    bfloat16: bool,
) -> Results:
    """One block of rows at a time, as ``attention_entropy``; the window is gathered, the cells are summed."""
    results = entropy, lse, local, pooled, cell_lse = fake(q, k, grid, window, cells, scale, sharpness, bfloat16)
    neighbour, inside = window_neighbours((grid[0], grid[1]), (window[0], window[1]), q.device)
    for index, rows in head_blocks(q, k):
        block = scores(q[index][rows], k[index], scale, lse.dtype)
        maximum = block.amax(-1, keepdim=True)
        p = block.softmax(-1)
        log_mass = p.amax(-1).log().neg_()
        lse[index][rows] = maximum.squeeze(-1) + log_mass
        local[index][rows] = torch.where(inside[rows], p.gather(1, neighbour[rows]), 0).to(local.dtype)
        if sharpness == 1:
            cell_lse[index][rows] = lse[index][rows]
            pooled[index][rows] = sum_cells(p, grid, cells).to(pooled.dtype)
        else:
            sharp = (block - maximum).mul_(sharpness)
            cell_lse[index][rows] = sharp.logsumexp(-1) + sharpness * maximum.squeeze(-1)
            pooled[index][rows] = sum_cells(sharp.softmax(-1), grid, cells).to(pooled.dtype)
        # a masked key (score −inf) has p = 0 and must add 0, not 0 · −inf; a row with a NaN score is NaN in log_mass
        weighted = p.mul_(block.sub_(maximum)).nansum(-1)
        entropy[index][rows] = (log_mass - weighted).clamp_(min=0)
    return results


def fake(
    q: Tensor,
    k: Tensor,
    grid: list[int],
    window: list[int],
    cells: list[int],
    scale: float,
    sharpness: float,
    bfloat16: bool,
) -> Results:
    """Three numbers, a window and the cells for each row."""
    dtype = accumulation_dtype(q, k)
    rows = q.shape[:3]
    entropy, lse, cell_lse = (q.new_empty(rows, dtype=dtype) for _ in range(3))
    storage = torch.bfloat16 if bfloat16 else dtype
    local = q.new_empty((*rows, window[0] * window[1]), dtype=storage)
    pooled = q.new_empty((*rows, cells[0] * cells[1]), dtype=storage)
    return entropy, lse, local, pooled, cell_lse


def backward(run: Pass, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Window and cells are shares of a row: Σ g · share is taken off each of their gradients."""
    grads, (q, k, grid, window, cells, scale, sharpness, _), results = arguments[:5], arguments[5:13], arguments[13:]
    grad_entropy, grad_lse, grad_local, grad_pooled, grad_cell_lse = grads
    entropy, lse, local, pooled, cell_lse = results
    a = grad_lse - grad_entropy * entropy - (grad_local.to(lse.dtype) * local.to(lse.dtype)).sum(-1)
    c = grad_cell_lse - (grad_pooled.to(lse.dtype) * pooled.to(lse.dtype)).sum(-1)
    of_cells = (None, None) if sharpness == 1 else (cell_lse, c)
    grad_q, grad_k, _ = run(
        q, k, lse, a + c if sharpness == 1 else a, -grad_entropy, *of_cells, grad_local, grad_pooled,
        grid, window, cells, scale, sharpness,
    )  # fmt: skip
    return grad_q, grad_k


attention_statistics_cpp = define_native(
    "_attention_statistics_cpp(Tensor q, Tensor k, SymInt[] grid, SymInt[] window, SymInt[] cells, float scale,"
    " float sharpness, bool bfloat16) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake,
)


attention_statistics = Operator(
    "attention_statistics(Tensor q, Tensor k, SymInt[] grid, SymInt[] window, SymInt[] cells, float scale,"
    " float sharpness, bool bfloat16) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    eager=refusing_overflow(eager),
    fake=fake,
    backward=gradient_of_scores(backward, saves_results=True),
    cpp=refusing_overflow(attention_statistics_cpp),
    triton=refusing_overflow(run_lazily("attention.attention_statistics")),
    why_not_triton=why_unsupported_heads,
)
