"""Stage 2: S_global, the affinity of tokens as a low-rank product."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from nerve_kernels._arguments import UNUSED_PAIR, AffinityArguments
from nerve_kernels._operators.cell_pooling import average_cells, sum_cells
from nerve_kernels._operators.checks import (
    check_cells,
    check_grid,
    check_same_device,
    check_shape,
    check_tensor,
    check_tokens,
    refusal,
    shape_of,
)
from nerve_kernels._operators.library import accumulation_dtype
from nerve_kernels.grids import Grid, cell_of_token

from .base import Affinity, check_matrix, holds_placeholders


@dataclass(frozen=True, eq=False)
class LowRankAffinity(Affinity):
    """S_global = U Vᵀ: with ``cells``, V averages over each cell of the grid; with ``v``, it is what it is.

    ``(S P)ᵢ = Σ_m U[i, m] · mean_{j in cell m} Pⱼ``, or ``S P = u (vᵀ P)``

    Args:
        u: (B, N, M) with M = h·w cells, or (B, N, r).
        v: (B, N, r), or ``None`` with ``cells``.
        grid: (H, W), N = H·W row-major.
        cells: (h, w): cell row a covers grid rows ⌊aH/h⌋ … ⌊(a+1)H/h⌋−1, columns likewise. Exactly one of ``v`` and
            ``cells``.

    Raises:
        TypeError, ValueError: for a bad argument, named.

    Example:
        >>> import torch, nerve_kernels as nk
        >>> S = nk.LowRankAffinity(torch.ones(1, 6, 1), grid=(2, 3), cells=(1, 1))  # everyone takes the average
        >>> (S @ torch.arange(6.0)[:, None])[0].item()
        2.5
    """

    u: Tensor
    v: Tensor | None = None
    grid: Grid = field(kw_only=True)
    cells: Grid | None = field(kw_only=True, default=None)

    def __post_init__(self) -> None:
        if holds_placeholders(self.u, self.grid):
            return
        object.__setattr__(self, "grid", check_grid("grid", self.grid))
        check_tensor("u", self.u, 3, "(B, N, r)")
        check_tokens("grid", self.grid, self.u.shape[1], "u")
        if (self.v is None) == (self.cells is None):
            given = "neither" if self.v is None else "both"
            raise ValueError(refusal("v, cells", "exactly one of them (v for explicit factors)", given))
        if self.cells is not None:
            object.__setattr__(self, "cells", check_cells(self.cells, self.grid))
            size = self.cells[0] * self.cells[1]
            if self.u.shape[2] != size:
                wanted = f"{self.cells[0]} × {self.cells[1]} = {size} columns for cells {self.cells}"
                raise ValueError(refusal("u", wanted, shape_of(self.u)))
        elif self.v is not None:
            check_tensor("v", self.v, 3, "(B, N, r)")
            check_shape("v", self.v, self.u.shape, "the shape of u")
            check_same_device(u=self.u, v=self.v)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, N, N)."""
        return self.u.shape[0], self.u.shape[1], self.u.shape[1]

    def operator_arguments(self) -> AffinityArguments:
        """Low-rank part only."""
        return AffinityArguments(u=self.u, v=self.v, grid=self.grid, cells=self.cells or UNUSED_PAIR, beta=1.0)

    def _product(self, p: Tensor) -> Tensor:
        dtype = accumulation_dtype(self.u, self.v, p)
        wide = p.to(dtype)
        if self.v is not None:
            pooled = self.v.to(dtype).transpose(-1, -2) @ wide
        else:
            assert self.cells is not None
            pooled = average_cells(wide, list(self.grid), list(self.cells))
        return (self.u.to(dtype) @ pooled).to(p.dtype)

    def to(self, *args: Any, **kwargs: Any) -> LowRankAffinity:
        """The same affinity in another dtype or on another device, as ``torch.Tensor.to``."""
        v = None if self.v is None else self.v.to(*args, **kwargs)
        return replace(self, u=self.u.to(*args, **kwargs), v=v)

    def to_dense(self) -> Tensor:
        """The (B, N, N) matrix in the dtype of u."""
        if self.v is not None:
            return self.u @ self.v.transpose(-1, -2)
        assert self.cells is not None
        cell = cell_of_token(self.grid, self.cells, self.u.device)
        share = 1 / torch.bincount(cell, minlength=self.u.shape[2]).to(self.u.dtype)
        return (self.u * share)[:, :, cell]

    @classmethod
    def from_dense(cls, matrix: Tensor, *, grid: Grid, cells: int | Grid) -> LowRankAffinity:
        """Aggregate the columns of a dense (B, N, N) map over cells; exact for P that is constant on cells.

        Example:
            >>> import torch, nerve_kernels as nk
            >>> S = nk.LowRankAffinity.from_dense(torch.eye(4).unsqueeze(0), grid=(2, 2), cells=(1, 2))
            >>> S.u[0, 0].tolist()
            [1.0, 0.0]
        """
        grid = check_grid("grid", grid)
        pair = check_cells(cells, grid)
        check_matrix(matrix, grid)
        wide = matrix.to(accumulation_dtype(matrix)).flatten(0, 1).contiguous()
        u = sum_cells(wide, list(grid), list(pair)).view(*matrix.shape[:2], -1)
        return cls(u.to(matrix.dtype), grid=grid, cells=pair)


torch.export.register_dataclass(LowRankAffinity, serialized_type_name="nerve_kernels.LowRankAffinity")
