"""Token grids: cells, windows and bilinear resampling as index tensors, shared by the reference and every backend.

A picture is a grid of H × W tokens in row-major order, token i = y · W + x. Everything here is geometry: it depends
on sizes only, holds no data and costs O(N) or O(N·k²) integers.
"""

from __future__ import annotations

import torch
from torch import Tensor

Grid = tuple[int, int]

DEFAULT_CELLS_PER_SIDE = 16

MIN_WINDOW_MASS = torch.finfo(torch.float32).tiny
"""Attention that the window of a token must hold to be normalised; below it, the token's row becomes the identity."""


def default_cells(grid: Grid) -> Grid:
    """The cells used where none are asked for: 16 along each side, or as many as there are tokens."""
    return min(DEFAULT_CELLS_PER_SIDE, grid[0]), min(DEFAULT_CELLS_PER_SIDE, grid[1])


def cell_edges(side: int, cells: int, device: torch.device | None = None) -> Tensor:
    """The cells + 1 edges ⌊a · side / cells⌋ along one side, int64."""
    return torch.arange(cells + 1, device=device) * side // cells


def cell_of_position(side: int, cells: int, device: torch.device | None = None) -> Tensor:
    """For each position along one side, the cell it lies in, (side,), int64."""
    inner_edges = cell_edges(side, cells, device)[1:-1]
    return torch.bucketize(torch.arange(side, device=device), inner_edges, right=True)


def cell_of_token(grid: Grid, cells: Grid, device: torch.device | None = None) -> Tensor:
    """For each token, the index of its cell in row-major order, (N,), int64."""
    rows = cell_of_position(grid[0], cells[0], device)
    columns = cell_of_position(grid[1], cells[1], device)
    return (rows[:, None] * cells[1] + columns[None, :]).reshape(-1)


def cell_sizes(side: int, cells: int, device: torch.device | None = None) -> Tensor:
    """The number of positions in each cell along one side, (cells,), int64."""
    return cell_edges(side, cells, device).diff()


def window_neighbours(grid: Grid, window: Grid, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """For each token the kh·kw tokens of its window, (N, kh·kw) int64, and whether each lies on the grid, bool.

    Column (dy, dx) is row-major from the window's upper left corner. Indices outside the grid are clamped to 0 so that
    they can be gathered; the mask says to ignore them.
    """
    height, width = grid
    y = torch.arange(height, device=device)[:, None] + torch.arange(window[0], device=device) - window[0] // 2
    x = torch.arange(width, device=device)[:, None] + torch.arange(window[1], device=device) - window[1] // 2
    y_inside, x_inside = (y >= 0) & (y < height), (x >= 0) & (x < width)
    inside = y_inside[:, None, :, None] & x_inside[None, :, None, :]
    neighbour = y[:, None, :, None] * width + x[None, :, None, :]
    size = window[0] * window[1]
    return torch.where(inside, neighbour, 0).reshape(-1, size), inside.reshape(-1, size)


def _bilinear_side(source: int, target: int, device: torch.device | None) -> tuple[Tensor, Tensor, Tensor]:
    position = (torch.arange(target, device=device, dtype=torch.float64) + 0.5) * (source / target) - 0.5
    position = position.clamp(min=0)
    low = position.floor().long().clamp(max=source - 1)
    high = (low + 1).clamp(max=source - 1)
    return low, high, position - low


def bilinear_corners(source: Grid, target: Grid, device: torch.device | None = None) -> list[tuple[Tensor, Tensor]]:
    """The four (source token, weight) pairs that bring rows from ``source`` to ``target``, each (N_target,).

    Half-pixel centres and clamped borders, as ``torch.nn.functional.interpolate(align_corners=False)``; weights are
    float64 and sum to 1 over the four corners.
    """
    y_low, y_high, y_fraction = _bilinear_side(source[0], target[0], device)
    x_low, x_high, x_fraction = _bilinear_side(source[1], target[1], device)
    corners = []
    for y, y_weight in ((y_low, 1 - y_fraction), (y_high, y_fraction)):
        for x, x_weight in ((x_low, 1 - x_fraction), (x_high, x_fraction)):
            corners.append(
                (
                    (y[:, None] * source[1] + x[None, :]).reshape(-1),
                    (y_weight[:, None] * x_weight[None, :]).reshape(-1),
                )
            )
    return corners
