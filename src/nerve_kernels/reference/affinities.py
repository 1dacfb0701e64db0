"""The definition of what each form of S stands for, as a dense matrix, and of graphs from features."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from nerve_kernels.grids import window_neighbours

from .grids import cell_average


def window_to_dense(values: Tensor, *, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """S (B, N, N) of window values (B, N, kh·kw); entries outside the grid are ignored."""
    neighbour, inside = window_neighbours(grid, window)
    dense = torch.zeros(*values.shape[:2], values.shape[1], dtype=torch.float64)
    rows = torch.arange(values.shape[1])[:, None].expand_as(neighbour)
    dense[:, rows[inside], neighbour[inside]] = values.detach().double().cpu()[:, inside]
    return dense.to(values.device)


def stencil_to_dense(
    values: Tensor, *, grid: tuple[int, int], offsets: Sequence[tuple[int, int]], clamp: bool = False
) -> Tensor:
    """S (B, N, N) of stencil values (B, N, K); beyond the border lies nothing, or with ``clamp`` the edge again."""
    height, width = grid
    dense = torch.zeros(*values.shape[:2], values.shape[1], dtype=torch.float64)
    stored = values.detach().double().cpu()
    for y, x in itertools.product(range(height), range(width)):
        for k, (dy, dx) in enumerate(offsets):
            row, column = min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)
            if clamp or (row, column) == (y + dy, x + dx):
                dense[:, y * width + x, row * width + column] += stored[:, y * width + x, k]
    return dense.to(values.device)


def graph_to_dense(row_pointers: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """S (N, N) of one graph in compressed rows; an empty row is that of the identity."""
    pointers = row_pointers.tolist()
    dense = torch.zeros(len(pointers) - 1, len(pointers) - 1, dtype=torch.float64)
    for row, (begin, end) in enumerate(itertools.pairwise(pointers)):
        if begin == end:
            dense[row, row] = 1
        for entry in range(begin, end):
            dense[row, int(columns[entry])] += values[entry].detach().double().cpu()
    return dense.to(values.device)


def knn_affinity(
    features: Tensor,
    k: int,
    *,
    power: float = 1.0,
    positions: Tensor | None = None,
    distance_scale: float = 0.0,
    distance_power: float = 1,
    symmetric: bool = True,
    normalize: str = "row",
) -> Tensor:
    """S (N, N) of features (N, d): the k largest inner products of a row, no self, W + Wᵀ, D⁻¹ W or D^−½ W D^−½."""
    products = features.double() @ features.double().transpose(0, 1)
    order = torch.sort(products, dim=1, descending=True, stable=True).indices[:, :k]
    chosen = torch.zeros_like(products).scatter(1, order, 1.0)
    w = products.clamp(min=0).pow(power) * chosen * (products > 0) * (1 - torch.eye(len(features)).double())
    if positions is not None:
        w = w * torch.exp(-distance_scale * torch.cdist(positions.double(), positions.double()) ** distance_power)
    w = w + w.transpose(0, 1) if symmetric else w
    degree = w.sum(1, keepdim=True)
    left = {"row": degree, "symmetric": degree.sqrt() * degree.sqrt().transpose(0, 1), "none": torch.ones(1)}[normalize]
    return torch.where(degree == 0, torch.eye(len(features)).double(), w / torch.where(left == 0, 1, left))


def low_rank_to_dense(
    u: Tensor, v: Tensor | None, *, grid: tuple[int, int], cells: tuple[int, int] | None = None
) -> Tensor:
    """S = U Vᵀ (B, N, N); with ``cells`` V is the average over cells."""
    right = cell_average(grid, cells).to(u.device).expand(u.shape[0], -1, -1) if cells is not None else v
    assert right is not None
    return u.double() @ right.double().transpose(-1, -2)


def mix(s_global: Tensor, s_local: Tensor, beta: float) -> Tensor:
    """S = β S_global + (1−β) S_local."""
    return beta * s_global.double() + (1 - beta) * s_local.double()
