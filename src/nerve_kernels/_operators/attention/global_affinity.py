"""global_affinity: the attention that each query gives to each cell of keys, U[i, m] = Σ_{j in m} Σ_h w_h e^{s − lse}.

U is (B, N, M) with M cells; the N × N_k map exists for one block of rows at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nerve_kernels._operators import dispatch
from nerve_kernels._operators.cell_pooling import gather_cells, sum_cells
from nerve_kernels._operators.library import define, differentiate, fold_batch, implement
from nerve_kernels._triton.availability import run_lazily, why_unsupported_attention

from .fuse_attention import accumulate_block_gradients, empty_gradients, fused_rows
from .score_blocks import row_blocks

define(
    "global_affinity(Tensor q, Tensor k, Tensor w, Tensor lse, SymInt[] grid, SymInt[] cells, float scale,"
    " str? backend=None) -> Tensor"
)
define(
    "_global_affinity_backward(Tensor grad, Tensor q, Tensor k, Tensor w, Tensor lse, SymInt[] grid, SymInt[] cells,"
    " float scale) -> (Tensor, Tensor, Tensor, Tensor)"
)
# implemented by the compiled extension, csrc/cpu/
define(
    "_global_affinity_cpp(Tensor q, Tensor k, Tensor w, Tensor lse, SymInt[] grid, SymInt[] cells, float scale)"
    " -> Tensor"
)


def eager(q: Tensor, k: Tensor, w: Tensor, lse: Tensor, grid: list[int], cells: list[int], scale: float) -> Tensor:
    """One block of fused rows at a time, summed over the cells of the key grid."""
    u = lse.new_empty((q.shape[0], q.shape[2], cells[0] * cells[1]))
    for b, rows in row_blocks(q, k):
        u[b, rows] = sum_cells(fused_rows(q, k, w, lse, scale, b, rows), grid, cells)
    return u


def cpp(q: Tensor, k: Tensor, w: Tensor, lse: Tensor, grid: list[int], cells: list[int], scale: float) -> Tensor:
    """Strips of the fused map, summed into cells while they are in the cache."""
    result: Tensor = torch.ops.nerve_kernels._global_affinity_cpp(q, k, w, lse, grid, cells, scale)
    return result


def _run(
    q: Tensor,
    k: Tensor,
    w: Tensor,
    lse: Tensor,
    grid: list[int],
    cells: list[int],
    scale: float,
    backend: str | None = None,
) -> Tensor:
    run = dispatch.choose("global_affinity", backend, (q, k, w, lse))
    result: Tensor = run(q, k, w, lse, grid, cells, scale)
    return result


def _fake(
    q: Tensor,
    k: Tensor,
    w: Tensor,
    lse: Tensor,
    grid: list[int],
    cells: list[int],
    scale: float,
    backend: str | None = None,
) -> Tensor:
    return lse.new_empty((q.shape[0], q.shape[2], cells[0] * cells[1]))


def _run_backward(
    grad: Tensor, q: Tensor, k: Tensor, w: Tensor, lse: Tensor, grid: list[int], cells: list[int], scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of the fused map is the cell's gradient at each of its keys; then as for the fused map."""
    inputs = (q, k, w, lse)
    grads = empty_gradients(inputs)
    for b, rows in row_blocks(q, k):
        grad_rows = gather_cells(grad[b, rows].to(lse.dtype), grid, cells)
        accumulate_block_gradients(grad_rows, inputs, grads, scale, b, rows)
    return grads[0].to(q.dtype), grads[1].to(k.dtype), grads[2].to(w.dtype), grads[3]


def _fake_backward(
    grad: Tensor, q: Tensor, k: Tensor, w: Tensor, lse: Tensor, grid: list[int], cells: list[int], scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(w), torch.empty_like(lse)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, w, lse, ctx.grid, ctx.cells, ctx.scale, _ = inputs
    ctx.save_for_backward(q, k, w, lse)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.nerve_kernels._global_affinity_backward(grad, *ctx.saved_tensors, ctx.grid, ctx.cells, ctx.scale)
    return *grads, None, None, None, None


implement("global_affinity", _run, _fake)
implement("_global_affinity_backward", _run_backward, _fake_backward)
torch.library.register_fake("nerve_kernels::_global_affinity_cpp", _fake)
differentiate("global_affinity", _backward, _setup_context)
fold_batch("global_affinity")
dispatch.register("global_affinity", "eager", eager)
dispatch.register("global_affinity", "cpp", cpp, dispatch.why_unsupported_cpp)
dispatch.register("global_affinity", "triton", run_lazily("attention.global_affinity"), why_unsupported_attention)
