"""Stage 2: S, the affinity of tokens, as a sparse window or a low-rank product; ``mixed_affinity`` has the sum of both.

The classes hold tensors and sizes and are registered as pytrees, so that they pass through ``torch.compile``,
``torch.export`` and ``torch.func``. ``S @ P`` is the product with a matrix of token columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ._arguments import UNUSED_PAIR, AffinityArguments
from ._operators import walk as operators
from ._operators.attention.local_affinity import normalize_window_rows
from ._operators.cell_pooling import average_cells, sum_cells
from ._operators.checks import (
    check_batch,
    check_cells,
    check_grid,
    check_same_device,
    check_shape,
    check_tensor,
    check_tokens,
    check_window,
    refusal,
    shape_of,
)
from ._operators.library import accumulation_dtype
from .grids import Grid, cell_of_token, window_neighbours


def _columns(p: Any, shape: tuple[int, int, int]) -> tuple[Tensor, bool]:
    """P as (B, N, C) and whether it came as (N, C)."""
    if isinstance(p, Tensor) and p.dim() == 2:
        return _columns(p.unsqueeze(0), shape)[0], shape[0] == 1
    check_tensor("P", p, 3, "(B, N, C) or (N, C)")
    if p.shape[1] != shape[1]:
        raise ValueError(refusal("P", f"{shape[1]} tokens as the affinity has", shape_of(p)))
    check_batch("P", p.shape[0], shape[0], " as the affinity has")
    return p, False


def _check_matrix(matrix: Any, grid: Grid) -> None:
    """Raise where ``matrix`` is not (B, N, N) for the tokens of ``grid``."""
    check_tensor("matrix", matrix, 3, "(B, N, N)")
    check_tokens("grid", grid, matrix.shape[1], "matrix")
    check_shape("matrix", matrix, (matrix.shape[0], matrix.shape[1], matrix.shape[1]), "(B, N, N)")


def _holds_placeholders(tensor: Any, grid: Any) -> bool:
    """Whether torch (export, pytree) is rebuilding a dataclass around stand-ins of its own, not a user making one."""
    if torch.compiler.is_compiling() or not isinstance(grid, tuple) or len(grid) != 2:
        return False
    wrapped = any(type(side).__module__.startswith("torch.") for side in grid)
    plain = any(isinstance(side, (int, float, complex, str, bytes)) for side in grid)
    return wrapped or not (isinstance(tensor, Tensor) or plain)


class Affinity:
    """What affinities share: a shape, products with token columns, a dense form, and moving about."""

    def operator_arguments(self) -> AffinityArguments:
        """This affinity as the arguments of the walk's operator."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, N, N), as if it were dense."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.operator_arguments().tensors[0].device

    def __matmul__(self, p: Tensor) -> Tensor:
        """S P for P (B, N, C) or (N, C), in P's dtype, accumulated in float32 or better."""
        columns, squeeze = _columns(p, self.shape)
        check_same_device(affinity=self.operator_arguments().tensors[0], P=columns)
        product = self._product(columns)
        return product[0] if squeeze else product

    def _product(self, p: Tensor) -> Tensor:
        raise NotImplementedError

    def to_dense(self) -> Tensor:
        """The (B, N, N) matrix, for looking at and for tests: N² numbers."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class LocalAffinity(Affinity):
    """S_local: each token's weights over a window around it.

    ``(S P)ᵢ = Σ_{dy,dx} values[i, (dy, dx)] · P[i + (dy, dx)]``

    Args:
        values: (B, N, kh·kw), N = H·W row-major; column (dy, dx) row-major from the window's upper left. What lies
            outside the grid is never read.
        grid: (H, W).
        window: Odd int or pair of odd ints, at most 2 · side − 1.

    Raises:
        TypeError, ValueError: for a bad argument, named.

    Example:
        >>> import torch, nerve_kernels as nk
        >>> S = nk.LocalAffinity(torch.full((1, 4, 3), 1 / 3), grid=(1, 4), window=(1, 3))
        >>> S.shape, (S @ torch.ones(4, 1))[:, 0].tolist()[1:3]  # inner tokens see three neighbours
        ((1, 4, 4), [1.0, 1.0])
    """

    values: Tensor
    grid: Grid = field(kw_only=True)
    window: Grid = field(kw_only=True)

    def __post_init__(self) -> None:
        if _holds_placeholders(self.values, self.grid):
            return
        object.__setattr__(self, "grid", check_grid("grid", self.grid))
        object.__setattr__(self, "window", check_window(self.window, self.grid))
        check_tensor("values", self.values, 3, "(B, N, kh·kw)")
        check_tokens("grid", self.grid, self.values.shape[1], "values")
        size = self.window[0] * self.window[1]
        if self.values.shape[2] != size:
            wanted = f"{self.window[0]} × {self.window[1]} = {size} columns for window {self.window}"
            raise ValueError(refusal("values", wanted, shape_of(self.values)))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, N, N)."""
        return self.values.shape[0], self.values.shape[1], self.values.shape[1]

    def operator_arguments(self) -> AffinityArguments:
        """Local part only."""
        return AffinityArguments(self.values, grid=self.grid, window=self.window)

    def _product(self, p: Tensor) -> Tensor:
        return operators.window_product(self.values, p, self.grid, self.window)

    def to(self, *args: Any, **kwargs: Any) -> LocalAffinity:
        """The same affinity in another dtype or on another device, as ``torch.Tensor.to``."""
        return replace(self, values=self.values.to(*args, **kwargs))

    def to_dense(self) -> Tensor:
        """The (B, N, N) matrix in the dtype of the values."""
        neighbour, inside = window_neighbours(self.grid, self.window, self.values.device)
        rows = torch.arange(self.values.shape[1], device=self.values.device)[:, None].expand_as(neighbour)
        index = (rows * self.values.shape[1] + neighbour)[inside]
        dense = self.values.new_zeros((self.values.shape[0], self.values.shape[1] ** 2))
        return dense.index_copy(1, index, self.values[:, inside]).view(self.shape)

    @classmethod
    def from_dense(cls, matrix: Tensor, *, grid: Grid, window: int | Grid) -> LocalAffinity:
        """Keep the window of a dense (B, N, N) map and renormalise its rows; a row with no mass becomes the identity.

        Example:
            >>> import torch, nerve_kernels as nk
            >>> S = nk.LocalAffinity.from_dense(torch.ones(1, 9, 9), grid=(3, 3), window=3)
            >>> S.values[0, 0, 4].item()  # a corner has 4 neighbours, itself among them
            0.25
        """
        grid = check_grid("grid", grid)
        pair = check_window(window, grid)
        _check_matrix(matrix, grid)
        neighbour, inside = window_neighbours(grid, pair, matrix.device)
        kept = torch.where(inside, matrix.gather(2, neighbour.expand(matrix.shape[0], -1, -1)), 0)
        wide = normalize_window_rows(kept.to(accumulation_dtype(matrix)))
        return cls(wide.to(matrix.dtype), grid=grid, window=pair)


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
        if _holds_placeholders(self.u, self.grid):
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
        _check_matrix(matrix, grid)
        wide = matrix.to(accumulation_dtype(matrix)).flatten(0, 1).contiguous()
        u = sum_cells(wide, list(grid), list(pair)).view(*matrix.shape[:2], -1)
        return cls(u.to(matrix.dtype), grid=grid, cells=pair)


for _affinity in (LocalAffinity, LowRankAffinity):
    torch.export.register_dataclass(_affinity, serialized_type_name=f"nerve_kernels.{_affinity.__name__}")
