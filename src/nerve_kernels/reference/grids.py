"""The definition of what brings a grid to another, as matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from nerve_kernels.grids import bilinear_corners, cell_of_token


def query_resampling(source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """R (N_target, N_source): bilinear resampling of token rows, half-pixel centres, rows sum to 1."""
    matrix = torch.zeros(target[0] * target[1], source[0] * source[1], dtype=torch.float64)
    rows = torch.arange(matrix.shape[0])
    for index, weight in bilinear_corners(source, target):
        matrix.index_put_((rows, index), weight.double(), accumulate=True)
    return matrix


def cell_average(grid: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """V (N, M): V[j, m] = 1/|cell m| where token j lies in cell m; columns sum to 1."""
    membership = torch.nn.functional.one_hot(cell_of_token(grid, cells), cells[0] * cells[1]).double()
    return membership / membership.sum(0)
