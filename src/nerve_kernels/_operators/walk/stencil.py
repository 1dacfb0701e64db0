"""The product with a stencil: a window with dilations, without its centre or with its border repeated, by shifts of P.

Token i takes values[i, k] of the token at offset k from it. Beyond the border lies nothing, or the edge again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from nerve_kernels._arguments import AffinityArguments
from nerve_kernels.grids import Grid, stencil_neighbours, stencil_reach


class StencilPart:
    """S_local on a stencil, times its share of S."""

    def __init__(self, values: Tensor, share: float, grid: Grid, offsets: Sequence[Grid], clamp: bool) -> None:
        self.grid, self.offsets, self.clamp, self.share = grid, offsets, clamp, share
        self.reach = stencil_reach(offsets)
        self.inside = None if clamp else stencil_neighbours(grid, offsets, clamp, values.device)[1]
        # what lies outside the grid is never read, be it infinite
        self.values = values if self.inside is None else torch.where(self.inside, values, 0)

    def apply(self, p: Tensor) -> Tensor:
        """share · S_local P."""
        total = torch.zeros((), dtype=p.dtype, device=p.device)
        for column, shifted in self._shifts(p):
            total = total + self._weights(column) * shifted
        return self.share * total.flatten(1, 2)

    def apply_transpose(self, p: Tensor) -> Tensor:
        """share · S_localᵀ P."""
        (height, width), (top, left) = self.grid, self.reach
        on_grid = (self.share * p).unflatten(1, self.grid)
        batch = max(p.shape[0], self.values.shape[0])
        total = on_grid.new_zeros(batch, height + 2 * top, width + 2 * left, p.shape[2])
        for column, (dy, dx) in enumerate(self.offsets):
            y, x = top + dy, left + dx
            total[:, y : y + height, x : x + width] += self._weights(column) * on_grid
        return self._fold(self._fold(total, 1, top), 2, left).flatten(1, 2)

    def gradient(self, left: Tensor, p: Tensor) -> Tensor:
        """The gradient of ⟨left, share · S_local P⟩ for the values."""
        on_grid = (self.share * left).unflatten(1, self.grid)
        columns = [(on_grid * shifted).sum(-1).flatten(1) for _, shifted in self._shifts(p)]
        return torch.stack(columns, dim=-1)

    def _weights(self, column: int) -> Tensor:
        return self.values[:, :, column].unflatten(1, self.grid).unsqueeze(-1)

    def _shifts(self, p: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Each column of the values with P moved by its offset, (B, H, W, C)."""
        (height, width), (top, left) = self.grid, self.reach
        padded = p.unflatten(1, self.grid)
        if self.clamp:
            y = torch.arange(-top, height + top, device=p.device).clamp(0, height - 1)
            x = torch.arange(-left, width + left, device=p.device).clamp(0, width - 1)
            padded = padded[:, y][:, :, x]
        else:
            padded = functional.pad(padded, (0, 0, left, left, top, top))
        for column, (dy, dx) in enumerate(self.offsets):
            y_begin, x_begin = top + dy, left + dx
            yield column, padded[:, y_begin : y_begin + height, x_begin : x_begin + width]

    def _fold(self, padded: Tensor, dim: int, reach: int) -> Tensor:
        """What came to the padding of a dimension goes to the edge that it repeats, or nowhere."""
        side = padded.shape[dim] - 2 * reach
        inner = padded.narrow(dim, reach, side)
        if not self.clamp or not reach:
            return inner
        before = padded.narrow(dim, 0, reach).sum(dim, keepdim=True)
        after = padded.narrow(dim, reach + side, reach).sum(dim, keepdim=True)
        first, middle, last = inner.narrow(dim, 0, 1), inner.narrow(dim, 1, max(0, side - 2)), inner.narrow(dim, -1, 1)
        if side == 1:
            return inner + before + after
        return torch.cat([first + before, middle, last + after], dim)


def stencil_as_graph(affinity: AffinityArguments) -> AffinityArguments:
    """The same S with its stencil, or window, as a graph: (N, K) indices beside the values."""
    assert affinity.values is not None
    values, grid = affinity.values, (affinity.grid[0], affinity.grid[1])
    neighbour, inside = stencil_neighbours(grid, affinity.offsets(), affinity.clamp, values.device)
    count = neighbour.shape[1]
    return affinity._replace(
        values=(values if affinity.clamp else torch.where(inside, values, 0)).flatten(1),
        row_pointers=torch.arange(neighbour.shape[0] + 1, device=values.device).mul_(count).unsqueeze(0),
        columns=neighbour.to(torch.int32).reshape(1, -1),
        dilations=(1,),
        centre=True,
        clamp=False,
    )
