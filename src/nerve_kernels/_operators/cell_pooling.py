"""Sums and averages over the cells of a grid, and their transposes, for even and uneven cells."""

from __future__ import annotations

import torch
from torch import Tensor

from nerve_kernels.grids import cell_of_position, cell_of_token, cell_sizes


def _side_membership(side: int, cells: int, like: Tensor) -> Tensor:
    """(cells, side): 1 where the position lies in the cell."""
    cell = cell_of_position(side, cells, like.device)
    return (cell == torch.arange(cells, device=like.device)[:, None]).to(like.dtype)


def sum_cells(tokens: Tensor, grid: list[int], cells: list[int]) -> Tensor:
    """(rows, H·W) -> (rows, h·w): the sum over each cell.

    Picture rows are added first and columns by a small matrix product: on a CPU several times as fast as one
    reduction over the two inner dimensions of a cell, which torch does not vectorise.
    """
    rows = tokens.shape[0]
    on_grid = tokens.view(rows, *grid)
    if grid[0] % cells[0] == 0:
        blocks = on_grid.view(rows, cells[0], grid[0] // cells[0], grid[1])
        flat = blocks[:, :, 0].clone()
        for line in range(1, blocks.shape[2]):
            flat += blocks[:, :, line]
    else:
        flat = _side_membership(grid[0], cells[0], tokens) @ on_grid
    columns = _side_membership(grid[1], cells[1], tokens).transpose(0, 1)
    return (flat.view(rows * cells[0], grid[1]) @ columns).view(rows, -1)


def tokens_per_cell(grid: list[int], cells: list[int], like: Tensor) -> Tensor:
    """(M,) the number of tokens in each cell, in the dtype of ``like``."""
    rows, columns = (cell_sizes(side, count, like.device) for side, count in zip(grid, cells, strict=True))
    return (rows[:, None] * columns[None, :]).reshape(-1).to(like.dtype)


def average_cells(p: Tensor, grid: list[int], cells: list[int]) -> Tensor:
    """T = Vᵀ P: (B, H·W, C) -> (B, h·w, C), the average of P over each cell."""
    on_grid = p.unflatten(1, tuple(grid))
    rows = _side_membership(grid[0], cells[0], p)
    columns = _side_membership(grid[1], cells[1], p)
    if grid[0] % cells[0] == 0 and grid[1] % cells[1] == 0:
        blocks = on_grid.unflatten(2, (cells[1], -1)).unflatten(1, (cells[0], -1))
        # one dimension after the other: torch vectorises neither of two reduced at once (7 to 17 times as slow)
        return blocks.mean(2).mean(3).flatten(1, 2)
    # rows first: each output row of cells is one matrix product over whole picture rows
    summed = torch.einsum("ay,byxc->baxc", rows, on_grid)
    summed = torch.einsum("wx,baxc->bawc", columns, summed)
    return summed.flatten(1, 2) / tokens_per_cell(grid, cells, p)[:, None]


def spread_cells(t: Tensor, grid: list[int], cells: list[int]) -> Tensor:
    """V T: (B, h·w, C) -> (B, H·W, C), each token gets its cell's value divided by the cell's size."""
    share = t / tokens_per_cell(grid, cells, t)[:, None]
    return share[:, cell_of_token((grid[0], grid[1]), (cells[0], cells[1]), t.device)]


def gather_cells(cell_values: Tensor, grid: list[int], cells: list[int]) -> Tensor:
    """(rows, h·w) -> (rows, H·W): each token gets its cell's value; the transpose of ``sum_cells``."""
    if list(grid) == list(cells):
        return cell_values
    if grid[0] % cells[0] == 0 and grid[1] % cells[1] == 0:  # a copy: indexing takes several times as long
        blocks = cell_values.view(-1, cells[0], 1, cells[1], 1)
        return blocks.expand(-1, -1, grid[0] // cells[0], -1, grid[1] // cells[1]).reshape(cell_values.shape[0], -1)
    return cell_values[:, cell_of_token((grid[0], grid[1]), (cells[0], cells[1]), cell_values.device)]
