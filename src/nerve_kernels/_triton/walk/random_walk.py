"""random_walk: one launch a step where cells are even; and S as launches, for the walk and for its adjoint.

Step l reads one pair of buffers (P, T) and writes the other; T, the averages of P over cells, is written by the step
itself where each cell is h × w tokens of the grid, and by a launch of its own where cells are uneven or too large for
one program. Explicit factors take T = Vᵀ P from cuBLAS. P and T are float32, whatever seeds and affinity are stored in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nerve_kernels._arguments import AffinityArguments

from .walk_pooling import plan_average, plan_division
from .walk_step import MAX_LABELS, MAX_SLOTS, Step, tiling


class WalkOperator:
    """S as launches: what one step of the walk, or of its adjoint with Sᵀ, is made of."""

    def __init__(self, affinity: AffinityArguments, alpha: float, p: Tensor) -> None:
        values, u, v, dense, grid, window, cells, beta = affinity
        self.batch, self.tokens, self.labels = p.shape
        self.values = None if values is None else values.contiguous()
        self.u, self.dense, self.alpha = u, dense, alpha
        self.v = None if v is None else v.float()  # cuBLAS multiplies equal types only
        self.grid = [1, self.tokens] if dense is not None else list(grid)
        self.window = [1, 1] if values is None else list(window)
        self.cells = [0, 0] if u is None else list(cells)
        self.global_share = alpha * (beta if values is not None else 1.0)
        self.local_share = alpha * (1.0 - beta if u is not None else 1.0)
        self.has_cells = u is not None and v is None
        self.cells_are_tokens = self.has_cells and self.cells == self.grid
        cell = self._even_cell()
        self.pools_itself = cell is not None
        self.tiling = tiling(self.grid, cell, self.batch * self.labels)
        self.step = Step(
            self.grid,
            self.window,
            self.cells,
            self.tiling,
            (1.0 - alpha, self.global_share, self.local_share),
            u=self.u if dense is None else dense,
            values=self.values,
        )

    def _even_cell(self) -> tuple[int, int] | None:
        """The tokens of a cell along y and x, where all cells are alike and small enough for one program."""
        if not self.has_cells or self.cells_are_tokens:
            return None
        (height, width), (rows, columns) = self.grid, self.cells
        if height % rows or width % columns or height * width > MAX_SLOTS * rows * columns:
            return None
        return height // rows, width // columns

    def pool(self, p: Tensor) -> Tensor | None:
        """T of P, which a step reads beside it: averages over cells, Vᵀ P, or P itself."""
        if self.dense is not None or self.cells_are_tokens:
            return p
        if self.v is not None:
            return self.v.transpose(-1, -2) @ p.float()
        if not self.has_cells:
            return None
        pooled = self._empty_pooled()
        plan_average(p, self.grid, self.cells, pooled).run()
        return pooled

    def _empty_pooled(self) -> Tensor:
        size = (self.batch, self.cells[0] * self.cells[1], self.labels)
        return torch.empty(size, dtype=torch.float32, device=self._device())

    def _device(self) -> torch.device:
        return next(part.device for part in (self.values, self.u, self.dense) if part is not None)

    def advance(
        self, p: Tensor, pooled: Tensor | None, seeds: Tensor, out: Tensor, *, last: bool, normalize: bool = False
    ) -> Tensor | None:
        """Write the next P to ``out`` and return its T; the last step of a walk needs none."""
        if not self.pools_itself or last:
            self.step.plan(p, pooled, seeds, out, normalize=normalize).run()
            return None if last else self.pool(out)
        pooled_out = self._empty_pooled()
        self.step.plan(p, pooled, seeds, out, pooled_out).run()
        return pooled_out


def run(seeds: Tensor, affinity: AffinityArguments, alpha: float, steps: int, normalize: bool) -> Tensor:
    """All steps, in the seeds' dtype."""
    seeds = seeds.contiguous()
    out = torch.empty(seeds.shape, dtype=seeds.dtype, device=seeds.device)
    if steps == 0:
        if normalize:
            plan_division(seeds, out).run()
        else:
            out.copy_(seeds)
        return out
    operator = WalkOperator(affinity, alpha, seeds)
    # the result is one of the two buffers that alternate, where it can hold float32
    wide = out if seeds.dtype == torch.float32 else torch.empty(out.shape, dtype=torch.float32, device=out.device)
    buffers = (wide, torch.empty_like(wide) if steps > 1 else wide)
    divides_itself = normalize and seeds.shape[2] <= MAX_LABELS
    p, pooled = seeds, operator.pool(seeds)
    for step in range(1, steps + 1):
        last = step == steps
        target = out if last and (divides_itself or not normalize) else buffers[(steps - step) % 2]
        pooled = operator.advance(p, pooled, seeds, target, last=last, normalize=last and divides_itself)
        p = target
    if normalize and not divides_itself:
        plan_division(p, out).run()
    return out
