"""Rows and windows of a layer, brought to the grid of the affinity."""

from __future__ import annotations

import torch
from torch import Tensor

from .grids import Grid, bilinear_corners, cell_of_position, cell_of_token, window_neighbours


def blend_rows(rows: Tensor, layer: Grid, grid: Grid) -> Tensor:
    """Rows (B, N_layer, ·) of a layer's queries, brought to ``grid`` bilinearly, (B, N, ·)."""
    if layer == grid:
        return rows
    blended: Tensor | None = None
    for corner, weight in bilinear_corners(layer, grid, rows.device):
        part = rows[:, corner] * weight.to(rows.dtype)[:, None]
        blended = part if blended is None else blended + part
    assert blended is not None
    return blended


def window_on_layer(layer: Grid, grid: Grid, window: Grid) -> Grid:
    """The smallest window on ``layer`` that holds, around each query that is blended, all keys under ``window``."""
    if layer == grid:
        return window
    return _side_window(layer[0], grid[0], window[0]), _side_window(layer[1], grid[1], window[1])


def _side_window(source: int, target: int, window: int) -> int:
    cell = cell_of_position(target, source)
    positions = torch.arange(target)
    low, high = (cell[(positions + reach).clamp(0, target - 1)] for reach in (-(window // 2), window // 2))
    corners = [corner for corner, _ in bilinear_corners((source, 1), (target, 1))]
    reach = max(int(torch.maximum(high - corner, corner - low).max()) for corner in corners)
    return 2 * min(reach, source - 1) + 1


def spread_window_sums(sums: Tensor, layer: Grid, layer_window: Grid, grid: Grid, window: Grid) -> Tensor:
    """Window sums (B, N_layer, ·) of a coarser layer on ``grid``, (B, N, kh·kw), 0 outside it.

    Queries are blended bilinearly; a key shares its attention equally among the tokens that it covers.
    """
    if layer == grid:
        return sums
    device = sums.device
    cell = cell_of_token(grid, layer, device)
    neighbour, inside = window_neighbours(grid, window, device)
    key = cell[neighbour]
    share = 1 / torch.bincount(cell, minlength=sums.shape[1]).to(sums.dtype)
    key_share = torch.where(inside, share[key], 0)
    key_y, key_x = key // layer[1], key % layer[1]
    flat = sums.flatten(1)
    total = sums.new_zeros((sums.shape[0], *key.shape))
    for corner, weight in bilinear_corners(layer, grid, device):
        dy = key_y - (corner // layer[1])[:, None] + layer_window[0] // 2
        dx = key_x - (corner % layer[1])[:, None] + layer_window[1] // 2
        place = corner[:, None] * sums.shape[2] + dy * layer_window[1] + dx
        # what is not on the grid was clamped to token 0, which may lie outside the layer's window
        found = flat[:, torch.where(inside, place, 0)]
        total += found * (key_share * weight.to(sums.dtype)[:, None])
    return total
