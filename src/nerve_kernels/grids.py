"""Token grids: cells, windows and bilinear resampling as index tensors, shared by the reference and every backend.

A picture is a grid of H × W tokens in row-major order, token i = y · W + x. Everything here is geometry: it depends
on sizes only, holds no data and costs O(N) or O(N·k²) integers.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def stencil_offsets(window: Grid, dilations: Sequence[int] = (1,), centre: bool = True) -> list[Grid]:
    """The (dy, dx) that a token sees: for each dilation the window row-major from its upper left, dilation times apart.

    Without ``centre`` the token itself is left out of each.
    """
    half_height, half_width = window[0] // 2, window[1] // 2
    steps = [(dy, dx) for dy in range(-half_height, half_height + 1) for dx in range(-half_width, half_width + 1)]
    kept = [step for step in steps if centre or step != (0, 0)]
    return [(dilation * dy, dilation * dx) for dilation in dilations for dy, dx in kept]


def stencil_reach(offsets: Sequence[Grid]) -> Grid:
    """How far the offsets reach from a token, along y and x."""
    return max(abs(dy) for dy, _ in offsets), max(abs(dx) for _, dx in offsets)


def stencil_neighbours(
    grid: Grid, offsets: Sequence[Grid], clamp: bool, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """For each token the token at each offset, (N, K) int64, and whether it is one of the grid, bool.

    With ``clamp`` every one is: an offset beyond the border leads to the nearest token of the edge. Without, indices
    outside the grid are clamped all the same, so that they can be gathered.
    """
    height, width = grid
    steps = torch.tensor(offsets, dtype=torch.int64, device=device)
    y = torch.arange(height, device=device)[:, None, None] + steps[:, 0]
    x = torch.arange(width, device=device)[None, :, None] + steps[:, 1]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    neighbour = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    count = steps.shape[0]
    return neighbour.reshape(-1, count), (inside | clamp).reshape(-1, count)


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
