"""global_affinity: the attention that each query gives to each cell of keys, U[i, m] = Σ_{j in m} Σ_h w_h e^{s − lse}.

U is (B, N, M) with M cells; the N × N_k map exists for one block of rows at a time.
"""

from __future__ import annotations

from torch import Tensor

from nerve_kernels._operators.cell_pooling import sum_cells
from nerve_kernels._operators.library import Operator
from nerve_kernels._triton.availability import why_unsupported_heads

from .fuse_attention import fused_rows
from .score_blocks import row_blocks
from .score_gradients import fused_gradients, gradient_of_scores


def eager(q: Tensor, k: Tensor, w: Tensor, lse: Tensor, grid: list[int], cells: list[int], scale: float) -> Tensor:
    """One block of fused rows at a time, summed over the cells of the key grid."""
    u = lse.new_empty((q.shape[0], q.shape[2], cells[0] * cells[1]))
    for b, rows in row_blocks(q, k):
        u[b, rows] = sum_cells(fused_rows(q, k, w, lse, scale, b, rows), grid, cells)
    return u


def fake(q: Tensor, k: Tensor, w: Tensor, lse: Tensor, grid: list[int], cells: list[int], scale: float) -> Tensor:
    """U."""
    return lse.new_empty((q.shape[0], q.shape[2], cells[0] * cells[1]))


global_affinity = Operator(
    "global_affinity(Tensor q, Tensor k, Tensor w, Tensor lse, SymInt[] grid, SymInt[] cells, float scale) -> Tensor",
    eager=eager,
    fake=fake,
    backward=gradient_of_scores(fused_gradients),
    triton="attention.global_affinity",
    why_not_triton=why_unsupported_heads,
)
