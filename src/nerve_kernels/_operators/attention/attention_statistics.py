"""attention_statistics: of every head, entropy and lse of each row, its attention to its window and to each cell.

Window and cells hold shares of the row's whole attention, so that any Σ_h w_h of them is what the fused map would give;
the cells are those of softmax(γ · scores), whose own logarithm of the sum is ``cell_lse`` (for γ = 1 that is ``lse``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nerve_kernels._operators.cell_pooling import gather_cells, sum_cells
from nerve_kernels._operators.library import Gradient, Operator, accumulation_dtype, define_native
from nerve_kernels._triton.availability import run_lazily, why_unsupported_heads
from nerve_kernels.grids import window_neighbours

from .overflow import refusing_overflow
from .score_blocks import head_blocks, probabilities, scores

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


def row_terms(grads: Sequence[Tensor], results: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """What the gradient of a score needs of its row, each (B, heads, N): a, b and c in

    ds = p · (a + b (s − lse) + g_local) + γ p' · (c + g_pooled), where p' = softmax(γ · scores).
    """
    grad_entropy, grad_lse, grad_local, grad_pooled, grad_cell_lse = grads
    entropy, lse, local, pooled, _ = results
    a = grad_lse - grad_entropy * entropy - (grad_local.to(lse.dtype) * local.to(lse.dtype)).sum(-1)
    c = grad_cell_lse - (grad_pooled.to(lse.dtype) * pooled.to(lse.dtype)).sum(-1)
    return a, -grad_entropy, c


def backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Block by block: dq = scale · ds k and dk = scale · dsᵀ q."""
    grads, (q, k, grid, window, cells, scale, sharpness, _), results = arguments[:5], arguments[5:13], arguments[13:]
    lse, cell_lse = results[1], results[4]
    a, b, c = row_terms(grads, results)
    neighbour, inside = window_neighbours((grid[0], grid[1]), (window[0], window[1]), q.device)
    grad_q = torch.empty(q.shape, dtype=lse.dtype, device=q.device)
    grad_k = torch.zeros(k.shape, dtype=lse.dtype, device=k.device)
    lowest = torch.finfo(lse.dtype).min
    for index, rows in head_blocks(q, k):
        log_p = scores(q[index][rows], k[index], scale, lse.dtype).sub_(lse[index][rows].unsqueeze(-1))
        p = log_p.exp()
        inner = log_p.clamp(min=lowest).mul_(b[index][rows].unsqueeze(-1)).add_(a[index][rows].unsqueeze(-1))
        grad_window = torch.where(inside[rows], grads[2][index][rows].to(lse.dtype), 0)
        inner.scatter_add_(1, neighbour[rows], grad_window)
        of_cells = gather_cells(grads[3][index][rows].to(lse.dtype), grid, cells).add_(c[index][rows].unsqueeze(-1))
        if sharpness == 1:
            grad_scores = inner.add_(of_cells).mul_(p)
        else:
            sharp = probabilities(q[index][rows], k[index], cell_lse[index][rows], scale * sharpness)
            grad_scores = inner.mul_(p).add_(of_cells.mul_(sharp), alpha=sharpness)
        grad_q[index][rows] = scale * (grad_scores @ k[index].to(lse.dtype))
        grad_k[index] += scale * (grad_scores.transpose(-1, -2) @ q[index][rows].to(lse.dtype))
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
    backward=Gradient(backward, saves_results=True),
    cpp=refusing_overflow(attention_statistics_cpp),
    triton=refusing_overflow(run_lazily("attention.attention_statistics")),
    why_not_triton=why_unsupported_heads,
)
