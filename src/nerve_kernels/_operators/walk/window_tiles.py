"""The window product S_local @ P as batched matrix products over tiles of the grid: how eager runs it.

A tile of t × t tokens sees (t + kh − 1) × (t + kw − 1) neighbours, its halo. The window values of a tile, laid out
tile × halo, are a small dense matrix, so one step is one batched matrix product instead of kh·kw passes over P. The
layout costs (1 + (t−1)/k)² times the values' memory and is made once for all the steps of a walk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nerve_kernels.grids import window_neighbours


def _tile_side(window_side: int) -> int:
    """8 tokens a side up to window 9, then about the window itself: bounded waste, few tiles."""
    return 8 if window_side <= 9 else 16


@dataclass(frozen=True)
class TileGeometry:
    """Sizes of the tiling of one grid for one window."""

    grid: tuple[int, int]
    window: tuple[int, int]

    @classmethod
    def of(cls, grid: Sequence[int], window: Sequence[int]) -> TileGeometry:
        """Of a grid and a window as operators take them."""
        return cls((grid[0], grid[1]), (window[0], window[1]))

    @property
    def tile(self) -> tuple[int, int]:
        """Tokens of a tile along y and x."""
        return _tile_side(self.window[0]), _tile_side(self.window[1])

    @property
    def tiles(self) -> tuple[int, int]:
        """Number of tiles along y and x; the last ones may hang over the border."""
        return -(-self.grid[0] // self.tile[0]), -(-self.grid[1] // self.tile[1])

    @property
    def halo(self) -> tuple[int, int]:
        """Tokens of a tile's halo along y and x."""
        return self.tile[0] + self.window[0] - 1, self.tile[1] + self.window[1] - 1

    @property
    def overhang(self) -> tuple[int, int]:
        """Rows and columns by which the tiles hang over the lower and right border."""
        return self.tiles[0] * self.tile[0] - self.grid[0], self.tiles[1] * self.tile[1] - self.grid[1]

    def halo_index(self, device: torch.device) -> Tensor:
        """(t·t, kh·kw): where in the halo each token of a tile finds each column of its window."""
        y = torch.arange(self.tile[0], device=device)[:, None] + torch.arange(self.window[0], device=device)
        x = torch.arange(self.tile[1], device=device)[:, None] + torch.arange(self.window[1], device=device)
        index = y[:, None, :, None] * self.halo[1] + x[None, :, None, :]
        return index.reshape(self.tile[0] * self.tile[1], -1)


def _split_tiles(on_grid: Tensor, geometry: TileGeometry) -> Tensor:
    """(B, H, W, F) -> (B, tiles, t·t, F), zeros where tiles hang over the border."""
    padded = torch.nn.functional.pad(on_grid, (0, 0, 0, geometry.overhang[1], 0, geometry.overhang[0]))
    (tiles_y, tiles_x), (tile_y, tile_x) = geometry.tiles, geometry.tile
    split = padded.reshape(padded.shape[0], tiles_y, tile_y, tiles_x, tile_x, padded.shape[-1])
    return split.transpose(2, 3).reshape(padded.shape[0], tiles_y * tiles_x, tile_y * tile_x, padded.shape[-1])


def _join_tiles(tiled: Tensor, geometry: TileGeometry) -> Tensor:
    """(B, tiles, t·t, F) -> (B, N, F); the inverse of ``_split_tiles``."""
    (tiles_y, tiles_x), (tile_y, tile_x) = geometry.tiles, geometry.tile
    joined = tiled.reshape(tiled.shape[0], tiles_y, tiles_x, tile_y, tile_x, tiled.shape[-1]).transpose(2, 3)
    joined = joined.reshape(tiled.shape[0], tiles_y * tile_y, tiles_x * tile_x, tiled.shape[-1])
    return joined[:, : geometry.grid[0], : geometry.grid[1]].flatten(1, 2)


def tile_values(values: Tensor, geometry: TileGeometry) -> Tensor:
    """Window values (B, N, kh·kw) laid out tile × halo: (B, tiles, t·t, halo). What lies off the grid becomes 0."""
    _, inside = window_neighbours(geometry.grid, geometry.window, values.device)
    kept = torch.where(inside, values, 0).unflatten(1, geometry.grid)
    split = _split_tiles(kept, geometry)
    index = geometry.halo_index(values.device).expand_as(split)
    laid_out = split.new_zeros((*split.shape[:-1], geometry.halo[0] * geometry.halo[1]))
    return laid_out.scatter_(-1, index, split)


def gather_halos(p: Tensor, geometry: TileGeometry) -> Tensor:
    """P (B, N, C) -> each tile's neighbourhood (B, tiles, halo, C), zeros outside the grid."""
    on_grid = p.unflatten(1, geometry.grid)
    top, left = geometry.window[0] // 2, geometry.window[1] // 2
    bottom, right = geometry.overhang[0] + top, geometry.overhang[1] + left
    padded = torch.nn.functional.pad(on_grid, (0, 0, left, right, top, bottom))
    halos = padded.unfold(1, geometry.halo[0], geometry.tile[0]).unfold(2, geometry.halo[1], geometry.tile[1])
    return halos.permute(0, 1, 2, 4, 5, 3).reshape(p.shape[0], -1, geometry.halo[0] * geometry.halo[1], p.shape[-1])


def tiled_product(laid_out: Tensor, p: Tensor, geometry: TileGeometry) -> Tensor:
    """S_local @ P from values laid out by ``tile_values``; a batch of 1 broadcasts."""
    return _join_tiles(laid_out @ gather_halos(p, geometry), geometry)


def values_gradient(grad: Tensor, p: Tensor, geometry: TileGeometry) -> Tensor:
    """dL/dvalues[i, o] = Σ_c g[i, c] P[i + o, c], (B, N, kh·kw), 0 outside the grid."""
    tiled_grad = _split_tiles(grad.unflatten(1, geometry.grid), geometry)
    full = tiled_grad @ gather_halos(p, geometry).transpose(-1, -2)
    index = geometry.halo_index(p.device).expand(*full.shape[:-1], -1)
    return _join_tiles(full.gather(-1, index), geometry)


def transpose_values(values: Tensor, geometry: TileGeometry) -> Tensor:
    """Window values of S_localᵀ: token i at offset o holds what its neighbour i + o holds at offset −o."""
    neighbour, inside = window_neighbours(geometry.grid, geometry.window, values.device)
    size = geometry.window[0] * geometry.window[1]
    opposite = size - 1 - torch.arange(size, device=values.device)
    source = (neighbour * size + opposite).reshape(-1)
    transposed = values.flatten(1).index_select(1, source).view(values.shape)
    return torch.where(inside, transposed, 0)


class WindowPart:
    """S_local on a window, times its share of S, laid out for products once for all steps of a walk."""

    def __init__(self, values: Tensor, share: float, geometry: TileGeometry) -> None:
        self.values, self.share, self.geometry = values, share, geometry
        self._forward: Tensor | None = None
        self._adjoint: Tensor | None = None

    def apply(self, p: Tensor) -> Tensor:
        """share · S_local P."""
        if self._forward is None:
            self._forward = self.share * tile_values(self.values, self.geometry)
        return tiled_product(self._forward, p, self.geometry)

    def apply_transpose(self, p: Tensor) -> Tensor:
        """share · S_localᵀ P."""
        if self._adjoint is None:
            self._adjoint = self.share * tile_values(transpose_values(self.values, self.geometry), self.geometry)
        return tiled_product(self._adjoint, p, self.geometry)

    def gradient(self, left: Tensor, p: Tensor) -> Tensor:
        """The gradient of ⟨left, share · S_local P⟩ for the values."""
        return self.share * values_gradient(left, p, self.geometry)
