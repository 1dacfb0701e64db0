"""random_walk: one launch a step where cells are even; and S as launches, for the walk and for its adjoint.

Step l reads one pair of buffers (P, T) and writes the other; T, the averages of P over cells, is written by the step
itself where each cell is h × w tokens of the grid, and by a launch of its own where cells are uneven or too large for
one program. Explicit factors take T = Vᵀ P from cuBLAS. P and T are float32, whatever seeds and affinity are stored in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nerve_kernels._arguments import AffinityArguments
from nerve_kernels._triton.launch import on_device

from .packed_step import PackedStep
from .packing import PackedLayout, Terms, packed_layout, plan_packing
from .rows import padded_rows
from .sparse_step import SparseStep, sparse_local
from .walk_pooling import plan_average, plan_division
from .walk_step import MAX_LABELS, MAX_SLOTS, Step, tiling


def even_cell(grid: Sequence[int], cells: Sequence[int]) -> tuple[int, int] | None:
    """The tokens of a cell along y and x, where all cells are alike and small enough for one program."""
    (height, width), (rows, columns) = grid, cells
    if height % rows or width % columns or height * width > MAX_SLOTS * rows * columns:
        return None
    return height // rows, width // columns


class WalkOperator:
    """S as launches: what one step of the walk, or of its adjoint with Sᵀ, is made of."""

    def __init__(self, affinity: AffinityArguments, alpha: float, p: Tensor) -> None:
        values, u, v, dense = affinity.parts
        grid, window, cells, beta = affinity.grid, affinity.window, affinity.cells, affinity.beta
        self.batch, self.tokens, self.labels = p.shape
        self.device = p.device
        self.sparse = sparse_local(affinity)
        has_local = values is not None
        self.values = None if values is None or self.sparse else values.contiguous()
        self.u, self.dense, self.alpha = u, dense, alpha
        self.v = None if v is None else v.float()  # cuBLAS multiplies equal types only
        self.grid = [1, self.tokens] if dense is not None else list(grid)
        self.window = [1, 1] if self.values is None else list(window)
        self.cells = [0, 0] if u is None else list(cells)
        self.global_share = alpha * (beta if has_local else 1.0)
        self.local_share = alpha * (1.0 - beta if u is not None else 1.0)
        self.has_cells = u is not None and v is None
        self.cells_are_tokens = self.has_cells and self.cells == self.grid
        cell = even_cell(self.grid, self.cells) if self.has_cells and not self.cells_are_tokens else None
        self.pools_itself = cell is not None
        self.tiling = tiling(self.grid, cell, self.batch * self.labels)
        step = Step(
            self.grid,
            self.window,
            self.cells,
            self.tiling,
            (1.0 if self.sparse else 1.0 - alpha, self.global_share, self.local_share),
            u=self.u if dense is None else dense,
            values=self.values,
        )
        self.step: Step | SparseStep = step
        if self.sparse:
            self.step = SparseStep(self.sparse, 1.0 - alpha, self.local_share, None if u is None else step)
        self._start: Callable[..., None] | None = None

    def pool(self, p: Tensor, pooled: Tensor | None = None) -> Tensor | None:
        """T of P, which a step reads beside it: averages over cells or Vᵀ P, written to ``pooled``; or P itself."""
        if self.dense is not None or self.cells_are_tokens:
            return p
        if self.v is not None:
            return torch.matmul(self.v.transpose(-1, -2), p.float(), out=pooled)
        if self.pool_size is None:
            return None
        pooled = self.empty(1, self.pool_size)[0] if pooled is None else pooled
        plan_average(p, self.grid, self.cells, pooled).run()
        return pooled

    @property
    def pool_size(self) -> tuple[int, int, int] | None:
        """Of T, (B, r, C), where it is not P itself."""
        if self.u is None or self.cells_are_tokens:
            return None
        return self.batch, self.u.shape[2], self.labels

    def empty(self, count: int, size: Sequence[int]) -> Tensor:
        """(count, *size) float32, each contiguous at a multiple of 16 bytes, so that one launch serves them all."""
        return padded_rows((count, math.prod(size)), self.device).unflatten(1, list(size))

    def buffers(self, wide: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """What P goes to in turn, ``wide`` among them; where rows are gathered alone, two with rows made for that."""
        if self.sparse and self.u is None:
            first, second = (padded_rows(wide.shape, wide.device) if steps > least else wide for least in (2, 1))
            return first, second
        return wide, torch.empty_like(wide) if steps > 1 else wide

    def steps(
        self, p: Tensor, seeds: Tensor, buffers: Sequence[Tensor], out: Tensor, steps: int, normalize: bool
    ) -> None:
        """All steps from ``p``: to two ``buffers`` in turn, and the last to ``out``."""
        targets = [buffers[(steps - step) % 2] for step in range(1, steps)]
        pools = [None, None] if self.pool_size is None else self.empty(2, self.pool_size).unbind()
        p, pooled = self.through(p, seeds, targets, [pools[step % 2] for step in range(steps)])
        self.step.plan(p, pooled, seeds, out, normalize=normalize).run()

    def through(
        self, p: Tensor, seeds: Tensor, targets: Sequence[Tensor], pools: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor | None]:
        """A step to each of ``targets``; T of ``p`` and of each of them to ``pools``. Returns the last P and its T."""
        pooled = self.pool(p, pools[0])
        for out, pooled_out in zip(targets, pools[1:], strict=True):
            self._advance(p, pooled, seeds, out, pooled_out if self.pools_itself else None)
            p, pooled = out, pooled_out if self.pools_itself else self.pool(out, pooled_out)
        return p, pooled

    def product(self, p: Tensor) -> Tensor:
        """α S P, of a P at any address, in float32."""
        p = p.contiguous()
        out = torch.empty(p.shape, dtype=torch.float32, device=p.device)
        with on_device(p):
            self.step.plan(p, self.pool(p), None, out).run()
        return out

    def _advance(self, p: Tensor, pooled: Tensor | None, seeds: Tensor, out: Tensor, pooled_out: Tensor | None) -> None:
        """One step, planned by the first that starts from no seeds: those may have another dtype, and any address."""
        if p is seeds:
            self.step.plan(p, pooled, seeds, out, pooled_out).run()
            return
        buffers = {"p": p, "pooled": pooled, "out": out, "pooled_out": pooled_out}
        there = {name: buffer for name, buffer in buffers.items() if buffer is not None}
        if self._start is None:
            self._start = self.step.plan(p, pooled, seeds, out, pooled_out).prepared(*there)
        self._start(*there.values())


class PackedOperator:
    """S as a packed affinity, and the launches of a walk over it."""

    def __init__(
        self, seeds: Tensor, affinity: AffinityArguments, alpha: float, layout: PackedLayout, terms: Terms
    ) -> None:
        values, u, beta = affinity.values, affinity.u, affinity.beta
        batches = max(part.shape[0] for part in (values, u) if part is not None)
        size = batches, layout.tiling.tiles(layout.grid), layout.blocks, layout.tile_slots, layout.columns
        global_share = alpha * (beta if values is not None else 1.0)
        local_share = alpha * (1.0 - beta if u is not None else 1.0)
        packed = torch.empty(size, dtype=terms.weights, device=seeds.device)
        self.packing = plan_packing(None if values is None else values.contiguous(), u, layout, packed, terms)
        shares = (1.0 - alpha, global_share, local_share)
        self.step = PackedStep(layout, terms, shares, packed, seeds.shape[0], seeds.shape[2])

    def run(self, seeds: Tensor, out: Tensor, steps: int, normalize: bool) -> None:
        """All steps, to ``out``; with ``normalize``, where one program has all labels, rows divided by their sums."""
        step = self.step
        states = torch.zeros((2, *step.state_size()), dtype=step.terms.state, device=seeds.device).unbind()
        restart = torch.empty(step.restart_size(), dtype=torch.float32, device=seeds.device)
        self.packing.run()
        step.plan(seeds, restart, states[0], out, part="first").run()
        advance = step.plan(states[0], restart, states[1], out).prepared("x", "x_out")
        for index in range(steps - 1):
            advance(states[index % 2], states[(index + 1) % 2])
        step.plan(states[(steps - 1) % 2], restart, states[0], out, part="last", normalize=normalize).run()


def packed_operator(seeds: Tensor, affinity: AffinityArguments, alpha: float, steps: int) -> PackedOperator | None:
    """The operator on a packed affinity, where that is how the walk goes."""
    values, u, v, dense = affinity.parts
    grid, window, cells = affinity.grid, affinity.window, affinity.cells
    if dense is not None or v is not None or (cells == grid and u is not None):
        return None
    if affinity.local_kind in ("stencil", "graph"):
        return None
    parts = [part for part in (values, u) if part is not None]
    terms = Terms.of(parts, seeds)
    cell = None if u is None else even_cell(grid, cells)
    batches = max(part.shape[0] for part in parts)
    layout = packed_layout(
        seeds,
        list(grid),
        None if values is None else list(window),
        None if u is None else list(cells),
        cell,
        terms,
        batches,
        steps,
    )
    return None if layout is None else PackedOperator(seeds, affinity, alpha, layout, terms)


def run(seeds: Tensor, affinity: AffinityArguments, alpha: float, steps: int, normalize: bool) -> Tensor:
    """All steps, in the seeds' dtype."""
    seeds = seeds.contiguous()
    out = torch.empty(seeds.shape, dtype=seeds.dtype, device=seeds.device)
    if seeds.numel() == 0:
        return out
    if steps == 0:
        if normalize:
            plan_division(seeds, out).run()
        else:
            out.copy_(seeds)
        return out
    # a float32 result is one of the two buffers that alternate, and holds what rows are divided of
    wide = out if seeds.dtype == torch.float32 else torch.empty(out.shape, dtype=torch.float32, device=out.device)
    divides_itself = normalize and seeds.shape[2] <= MAX_LABELS
    last = out if divides_itself or not normalize else wide
    with on_device(seeds):
        packed = packed_operator(seeds, affinity, alpha, steps)
        if packed is not None:
            packed.run(seeds, last, steps, divides_itself)
        else:
            operator = WalkOperator(affinity, alpha, seeds)
            operator.steps(seeds, seeds, operator.buffers(wide, steps), last, steps, divides_itself)
        if last is not out or (normalize and not divides_itself):
            plan_division(last, out).run()
    return out
