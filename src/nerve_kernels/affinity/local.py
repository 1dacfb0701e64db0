"""Stage 2: S_local, the affinity of tokens within a window around each of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from nerve_kernels._arguments import PLAIN_DILATIONS, AffinityArguments
from nerve_kernels._operators import walk as operators
from nerve_kernels._operators.attention.local_affinity import normalize_window_rows
from nerve_kernels._operators.checks import (
    check_choice,
    check_dilations,
    check_flag,
    check_grid,
    check_tensor,
    check_tokens,
    check_window,
    refusal,
    shape_of,
)
from nerve_kernels._operators.library import accumulation_dtype
from nerve_kernels.grids import Grid, stencil_neighbours, window_neighbours

from .base import Affinity, check_matrix, holds_placeholders

BORDERS = ("zero", "clamp")
"""What may lie outside the grid."""


@dataclass(frozen=True, eq=False)
class LocalAffinity(Affinity):
    """S_local: each token's weights over a window around it, or over several with gaps.

    ``(S P)ᵢ = Σ_k values[i, k] · P[i + offset k]``, the offsets D · (dy, dx) of each dilation D and each place
    (dy, dx) of the window

    Args:
        values: (B, N, K), N = H·W row-major; K = kh·kw for each dilation, one less without ``centre``. Columns go by
            dilation, then by (dy, dx) row-major from the window's upper left.
        grid: (H, W).
        window: Odd int or pair of odd ints, at most 2 · side − 1.
        dilations: Ints ≥ 1: how far apart the places of the window are. With ``border="zero"`` none may lead past the
            grid from every token.
        centre: Whether a token sees itself, once for each dilation.
        border: What lies outside the grid: ``"zero"``, nothing, and its values are never read; ``"clamp"``, the nearest
            token of the edge again (replicate padding).

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
    dilations: tuple[int, ...] = field(kw_only=True, default=PLAIN_DILATIONS)
    centre: bool = field(kw_only=True, default=True)
    border: str = field(kw_only=True, default="zero")

    def __post_init__(self) -> None:
        if holds_placeholders(self.values, self.grid):
            return
        object.__setattr__(self, "grid", check_grid("grid", self.grid))
        clamp = check_choice("border", self.border, BORDERS) == "clamp"
        object.__setattr__(self, "window", check_window(self.window, self.grid, bounded=not clamp))
        object.__setattr__(self, "dilations", check_dilations(self.dilations, self.window, self.grid, clamp=clamp))
        check_tensor("values", self.values, 3, "(B, N, K)")
        check_tokens("grid", self.grid, self.values.shape[1], "values")
        size = self.window[0] * self.window[1] - (not check_flag("centre", self.centre))
        if size == 0:
            do = "a token that sees neither itself nor others has no affinity"
            raise ValueError(refusal("window", "more than one place without the centre", self.window, do))
        columns = size * len(self.dilations)
        if self.values.shape[2] != columns:
            count = f"{self.window[0]} × {self.window[1]}"
            count = count if self.centre else f"({count} − 1)"
            count = count if len(self.dilations) == 1 else f"{len(self.dilations)} × {count}"
            raise ValueError(
                refusal("values", f"{count} = {columns} columns for window {self.window}", shape_of(self.values))
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, N, N)."""
        return self.values.shape[0], self.values.shape[1], self.values.shape[1]

    def operator_arguments(self) -> AffinityArguments:
        """Local part only."""
        return AffinityArguments(
            self.values,
            grid=self.grid,
            window=self.window,
            dilations=self.dilations,
            centre=self.centre,
            clamp=self.border == "clamp",
        )

    def _product(self, p: Tensor) -> Tensor:
        if self.operator_arguments().local_kind == "window":
            return operators.window_product(self.values, p, self.grid, self.window)
        return super()._product(p)

    def to(self, *args: Any, **kwargs: Any) -> LocalAffinity:
        """The same affinity in another dtype or on another device, as ``torch.Tensor.to``."""
        return replace(self, values=self.values.to(*args, **kwargs))

    def to_dense(self) -> Tensor:
        """The (B, N, N) matrix in the dtype of the values."""
        arguments, (batch, tokens, _) = self.operator_arguments(), self.shape
        neighbour, inside = stencil_neighbours(self.grid, arguments.offsets(), arguments.clamp, self.values.device)
        rows = torch.arange(tokens, device=self.values.device)[:, None].expand_as(neighbour)
        index = (rows * tokens + neighbour)[inside]
        # several places may lead to one token of the edge
        return self.values.new_zeros(batch, tokens**2).index_add(1, index, self.values[:, inside]).view(self.shape)

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
        check_matrix(matrix, grid)
        neighbour, inside = window_neighbours(grid, pair, matrix.device)
        kept = torch.where(inside, matrix.gather(2, neighbour.expand(matrix.shape[0], -1, -1)), 0)
        wide = normalize_window_rows(kept.to(accumulation_dtype(matrix)))
        return cls(wide.to(matrix.dtype), grid=grid, window=pair)


torch.export.register_dataclass(LocalAffinity, serialized_type_name="nerve_kernels.LocalAffinity")
