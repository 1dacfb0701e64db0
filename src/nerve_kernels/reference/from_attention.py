"""The definition of the affinities that attention gives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nerve_kernels.grids import window_neighbours

from .attention import fuse_attention
from .grids import cell_average, query_resampling

WINDOW_MASS_FLOOR = torch.finfo(torch.float32).tiny
"""A row whose window holds less attention than this (smallest normal float32) has no usable window: identity."""


def _layers_on_grid(
    q: Tensor | Sequence[Tensor],
    k: Tensor | Sequence[Tensor],
    w: Tensor | Sequence[Tensor],
    grid: tuple[int, int],
    grids: Sequence[tuple[int, int]] | None,
    scale: float | None,
) -> list[tuple[Tensor, tuple[int, int]]]:
    """Each layer's fused map with its queries on ``grid``: (B, N, N_k of the layer), and the layer's own grid."""
    if isinstance(q, Tensor):
        assert isinstance(k, Tensor)
        assert isinstance(w, Tensor)
        return [(fuse_attention(q, k, w, scale=scale), grid)]
    assert grids is not None
    layers = []
    for layer_q, layer_k, layer_w, layer_grid in zip(q, k, w, grids, strict=True):
        fused = fuse_attention(layer_q, layer_k, layer_w, scale=scale)
        layers.append((query_resampling(layer_grid, grid).to(fused.device) @ fused, layer_grid))
    return layers


def local_affinity(
    q: Tensor | Sequence[Tensor],
    k: Tensor | Sequence[Tensor],
    w: Tensor | Sequence[Tensor],
    *,
    grid: tuple[int, int],
    window: tuple[int, int],
    grids: Sequence[tuple[int, int]] | None = None,
    scale: float | None = None,
) -> Tensor:
    """S_local (B, N, N): A_w inside the window, rows renormalised; a row with no mass there becomes the identity.

    A coarser layer's key gives its attention in equal shares to the tokens of ``grid`` that it covers.
    """
    total = torch.zeros(())
    for fused, layer_grid in _layers_on_grid(q, k, w, grid, grids, scale):
        spread = cell_average(grid, layer_grid).to(fused.device)
        total = total.to(fused.device) + fused @ spread.transpose(0, 1)
    return _window_rows(total, grid, window)


def _window_rows(attention_map: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    neighbour, inside = window_neighbours(grid, window)
    mask = torch.zeros(attention_map.shape[-2:], dtype=torch.bool)
    mask[torch.arange(mask.shape[0])[:, None].expand_as(neighbour)[inside], neighbour[inside]] = True
    kept = attention_map * mask.to(attention_map.device)
    mass = kept.sum(-1, keepdim=True)
    identity = torch.eye(mask.shape[0], dtype=kept.dtype, device=kept.device)
    return torch.where(mass < WINDOW_MASS_FLOOR, identity, kept / mass)


def global_affinity(
    q: Tensor | Sequence[Tensor],
    k: Tensor | Sequence[Tensor],
    w: Tensor | Sequence[Tensor],
    *,
    grid: tuple[int, int],
    cells: tuple[int, int],
    grids: Sequence[tuple[int, int]] | None = None,
    scale: float | None = None,
) -> Tensor:
    """S_global = U Vᵀ (B, N, N): U[i, m] = Σ_{j in cell m} A_w[i, j], V the average over a cell's tokens."""
    u = torch.zeros(())
    for fused, layer_grid in _layers_on_grid(q, k, w, grid, grids, scale):
        membership = (cell_average(layer_grid, cells) > 0).double().to(fused.device)
        u = u.to(fused.device) + fused @ membership
    return u @ cell_average(grid, cells).to(u.device).transpose(0, 1)
