"""S as an operator: products with S and Sᵀ and the gradient of its parts, from structure, never from a dense N × N.

The walk and its limit, forward and adjoint, are all written with this one class; ``cpp_affinity_operator`` has the same
in compiled kernels.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from nerve_kernels._arguments import AffinityArguments, Parts
from nerve_kernels._operators.cell_pooling import average_cells, spread_cells
from nerve_kernels._operators.library import accumulation_dtype

from .graph import GraphPart
from .stencil import StencilPart
from .window_tiles import TileGeometry, WindowPart


class AffinityOperator:
    """β U Vᵀ + (1−β) S_local, or a dense S, in one working precision."""

    def __init__(self, affinity: AffinityArguments, dtype: torch.dtype) -> None:
        self.stored, self.dtype = affinity, dtype
        self.grid, self.cells = list(affinity.grid), list(affinity.cells)
        self.beta = affinity.beta if affinity.values is not None else 1.0
        self.local_share = 1.0 - affinity.beta if affinity.u is not None else 1.0

    @cached_property
    def affinity(self) -> AffinityArguments:
        """The affinity in the working precision; a compiled kernel may never ask for it."""
        return self.stored.map(lambda part: part.to(self.dtype))

    @property
    def values(self) -> Tensor | None:
        """Window values."""
        return self.affinity.values

    @property
    def u(self) -> Tensor | None:
        """U of S_global."""
        return self.affinity.u

    @property
    def v(self) -> Tensor | None:
        """V of S_global, where it is not the averages over cells."""
        return self.affinity.v

    @property
    def dense(self) -> Tensor | None:
        """S itself."""
        return self.affinity.dense

    @cached_property
    def local(self) -> WindowPart | StencilPart | GraphPart | None:
        """S_local times its share."""
        affinity, share = self.affinity, self.local_share
        if affinity.values is None:
            return None
        if affinity.row_pointers is not None and affinity.columns is not None:
            return GraphPart(affinity.values, share, affinity.row_pointers, affinity.columns, affinity.num_tokens)
        geometry = TileGeometry.of(affinity.grid, affinity.window)
        if affinity.local_kind == "window":
            return WindowPart(affinity.values, share, geometry)
        return StencilPart(affinity.values, share, geometry.grid, affinity.offsets(), affinity.clamp)

    def walk(self, seeds: Tensor, p: Tensor, alpha: float, steps: int) -> Tensor:
        """P after ``steps`` steps P ← (1−α) G + α S P."""
        restart = (1 - alpha) * seeds
        for _ in range(steps):
            p = torch.add(restart, self.apply(p), alpha=alpha)
        return p

    def apply(self, p: Tensor) -> Tensor:
        """S P."""
        if self.dense is not None:
            return self.dense @ p
        total = None
        if self.u is not None:
            total = self.beta * (self.u @ self._average(p))
        if self.local is not None:
            local = self.local.apply(p)
            total = local if total is None else total.add_(local)
        assert total is not None
        return total

    def apply_transpose(self, p: Tensor) -> Tensor:
        """Sᵀ P."""
        if self.dense is not None:
            return self.dense.transpose(-1, -2) @ p
        total = None
        if self.u is not None:
            pooled = self.u.transpose(-1, -2) @ p
            spread = spread_cells(pooled, self.grid, self.cells) if self.v is None else self.v @ pooled
            total = self.beta * spread
        if self.local is not None:
            local = self.local.apply_transpose(p)
            total = local if total is None else total.add_(local)
        assert total is not None
        return total

    def gradient(self, left: Tensor, p: Tensor) -> Parts:
        """The gradient of ⟨left, S P⟩ for each part of S: (B, …), not yet summed over a broadcast batch."""
        if self.dense is not None:
            return None, None, None, left @ p.transpose(-1, -2)
        grad_values = grad_u = grad_v = None
        if self.u is not None:
            grad_u = self.beta * (left @ self._average(p).transpose(-1, -2))
            if self.v is not None:
                grad_v = self.beta * (p @ (self.u.transpose(-1, -2) @ left).transpose(-1, -2))
        if self.stored.values is not None:
            grad_values = self._values_gradient(left, p)
        return grad_values, grad_u, grad_v, None

    def _values_gradient(self, left: Tensor, p: Tensor) -> Tensor:
        assert self.local is not None
        return self.local.gradient(left, p)

    def _average(self, p: Tensor) -> Tensor:
        """Vᵀ P."""
        return average_cells(p, self.grid, self.cells) if self.v is None else self.v.transpose(-1, -2) @ p


def add_parts(total: Parts | None, more: Parts) -> Parts:
    """Part by part sum, in place on ``total``."""
    if total is None:
        return more
    return tuple(  # type: ignore[return-value]
        left if left is None or right is None else left.add_(right) for left, right in zip(total, more, strict=True)
    )


def working_dtype(seeds: Tensor, affinity: AffinityArguments) -> torch.dtype:
    """float64 where the seeds or the affinity are, else float32."""
    return accumulation_dtype(seeds, *affinity.parts)


def row_totals(p: Tensor) -> Tensor:
    """Row sums to divide by; 1 where a row sums to 0, so that a zero row stays zero."""
    total = p.sum(-1, keepdim=True)
    return torch.where(total == 0, 1, total)
