"""S as an operator in compiled kernels: the walk, products with S and Sᵀ, and the gradient of the window values."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from nerve_kernels._arguments import AffinityArguments
from nerve_kernels._operators.library import AFFINITY_PARTS, define_native
from nerve_kernels.grids import stencil_neighbours

from .affinity_operator import AffinityOperator, working_dtype
from .graph import transpose_graph
from .stencil import stencil_as_graph
from .window_product import window_gradient_cpp
from .window_tiles import TileGeometry, transpose_values


def fake_walk(seeds: Tensor, *arguments: object) -> Tensor:
    """The seeds' shape."""
    return seeds.new_empty(seeds.shape)


# csrc/cpu/walk/random_walk.h: it starts from ``start`` where that is given, and besides what random_walk takes it takes
# v without u, the transpose of u without v. S_local is a window or a graph
random_walk_cpp = define_native(
    f"_random_walk_cpp(Tensor seeds, Tensor? start, {AFFINITY_PARTS}, float alpha, SymInt steps, bool normalize)"
    " -> Tensor",
    fake_walk,
)
# csrc/cpu/pixels/stencil_walk.h: the same on a lone stencil, in planes of labels, for grids as large as images
stencil_walk_cpp = define_native(
    "_stencil_walk_cpp(Tensor seeds, Tensor? start, Tensor values, SymInt[] grid, SymInt[] offsets, bool clamp,"
    " float alpha, SymInt steps, bool normalize) -> Tensor",
    fake_walk,
)
# csrc/cpu/pixels/stencil_solve.h: (I − αS) X = right for a symmetric S that is a lone stencil, by conjugate gradients
stencil_solve_cpp = define_native(
    "_stencil_solve_cpp(Tensor right, Tensor values, SymInt[] grid, SymInt[] offsets, bool clamp, float alpha,"
    " SymInt iterations, float tolerance) -> Tensor",
    fake_walk,
)
# csrc/cpu/walk/sampled_product.h
sampled_product_cpp = define_native(
    "_sampled_product_cpp(Tensor left, Tensor p, Tensor row_pointers, Tensor columns) -> Tensor",
    lambda left, p, row_pointers, columns: left.new_empty((left.shape[0], columns.shape[1])),
)


WORK_PER_CALL = 2**34
"""Multiplications of one call of the compiled walk: about a second. A signal is seen between two calls."""

MIN_WORK_PER_STEP = 2**20  # what a step takes at least, in multiplications: its threads wait for each other


def as_compiled(affinity: AffinityArguments) -> AffinityArguments:
    """The affinity as the compiled walk takes it: a stencil as a graph, and a graph's indices in its integers."""
    if affinity.local_kind == "stencil":
        return stencil_as_graph(affinity)
    if affinity.row_pointers is None or affinity.columns is None:
        return affinity
    return affinity._replace(row_pointers=affinity.row_pointers.long(), columns=affinity.columns.int())


def _is_lone_stencil(affinity: AffinityArguments) -> bool:
    return affinity.local_kind == "stencil" and len(affinity.tensors) == 1


def _compiled_walk(
    seeds: Tensor, start: Tensor | None, affinity: AffinityArguments, alpha: float, steps: int, normalize: bool
) -> Tensor:
    """All steps in one call of what is compiled for such an affinity, a lone stencil or one of ``as_compiled``."""
    result: Tensor
    if _is_lone_stencil(affinity):
        offsets = [step for offset in affinity.offsets() for step in offset]
        stencil = affinity.values, list(affinity.grid), offsets, affinity.clamp
        result = stencil_walk_cpp(seeds, start, *stencil, alpha, steps, normalize)
        return result
    result = random_walk_cpp(seeds, start, *affinity.without_stencil(), alpha, steps, normalize)
    return result


def walk_cpp(
    seeds: Tensor, start: Tensor | None, affinity: AffinityArguments, alpha: float, steps: int, normalize: bool
) -> Tensor:
    """The compiled walk in as many calls as a signal may have to wait for; the bits are those of a single call."""
    affinity = affinity if _is_lone_stencil(affinity) else as_compiled(affinity)
    steps_per_call = max(1, WORK_PER_CALL // max(MIN_WORK_PER_STEP, seeds.numel() * affinity.entries_per_row()))
    if steps <= steps_per_call:
        return _compiled_walk(seeds, start, affinity, alpha, steps, normalize)
    # between two calls P keeps the precision that it has within one
    wide, p = seeds.to(working_dtype(seeds, affinity)), start
    for first in range(0, steps, steps_per_call):
        count = min(steps_per_call, steps - first)
        p = _compiled_walk(wide, p, affinity, alpha, count, normalize and first + count == steps)
    assert p is not None  # there was at least one step
    return p.to(seeds.dtype)


class CppAffinityOperator(AffinityOperator):
    """:class:`AffinityOperator` on the CPU. Its parts stay in the dtype they are stored in: kernels widen them."""

    def __init__(self, affinity: AffinityArguments, dtype: torch.dtype) -> None:
        super().__init__(affinity, dtype)
        if affinity.v is not None and dtype == torch.float64:
            self.stored = affinity._replace(v=affinity.v.double())  # which a kernel would widen at every product

    @cached_property
    def _compiled(self) -> AffinityArguments:
        return as_compiled(self.stored)

    @property
    def _forward(self) -> AffinityArguments:
        """S for products: a lone stencil has a kernel of its own."""
        return self.stored if _is_lone_stencil(self.stored) else self._compiled

    @cached_property
    def _transposed(self) -> AffinityArguments:
        """Sᵀ, in which what is left and right of S_global are exchanged."""
        affinity = self._compiled
        transposed = affinity._replace(
            u=affinity.v,
            v=affinity.u,
            dense=None if affinity.dense is None else affinity.dense.transpose(-1, -2),
        )
        values, row_pointers, columns = affinity.values, affinity.row_pointers, affinity.columns
        if row_pointers is not None and columns is not None and values is not None:
            row_pointers, columns, values = transpose_graph(row_pointers, columns, values, affinity.num_tokens)
            return transposed._replace(values=values, row_pointers=row_pointers, columns=columns)
        if values is not None:
            values = transpose_values(values, TileGeometry.of(affinity.grid, affinity.window))
        return transposed._replace(values=values)

    def walk(self, seeds: Tensor, p: Tensor, alpha: float, steps: int) -> Tensor:
        """P after ``steps`` steps P ← (1−α) G + α S P."""
        return walk_cpp(seeds, p, self._forward, alpha, steps, False)

    def apply(self, p: Tensor) -> Tensor:
        """S P: one step with α = 1."""
        return self._step(self._forward, p)

    def apply_transpose(self, p: Tensor) -> Tensor:
        """Sᵀ P."""
        return self._step(self._transposed, p)

    def _step(self, affinity: AffinityArguments, p: Tensor) -> Tensor:
        # P in the batch of S, where P is one matrix for all
        seeds = p.expand(affinity.batch, -1, -1) if p.shape[0] == 1 else p
        return _compiled_walk(seeds, None, affinity, 1.0, 1, False)

    def _values_gradient(self, left: Tensor, p: Tensor) -> Tensor:
        affinity = self._compiled
        if affinity.row_pointers is None:
            geometry = TileGeometry.of(affinity.grid, affinity.window)
            gradient: Tensor = window_gradient_cpp(left, p, geometry.grid, geometry.window)
            return self.local_share * gradient
        gradient = self.local_share * sampled_product_cpp(left, p, affinity.row_pointers, affinity.columns)
        if self.stored.local_kind == "graph":
            return gradient
        gradient = gradient.unflatten(1, (affinity.num_tokens, -1))
        grid = (affinity.grid[0], affinity.grid[1])
        _, inside = stencil_neighbours(grid, self.stored.offsets(), self.stored.clamp, left.device)
        return torch.where(inside, gradient, 0)
