"""Seeded inputs of one size, made when first asked for."""

from __future__ import annotations

from functools import cached_property

import torch
from benchmarks.operations.registry import Size
from torch import Tensor

import nerve_kernels as nk
from nerve_kernels import reference
from nerve_kernels.grids import window_neighbours

ALPHA, BETA = 0.9, 0.5


def as_csr(values: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """Window weights (B, N, k²) as a sparse matrix (B·N, B·N) without the entries outside the grid."""
    batch, tokens, size = values.shape
    neighbour, inside = window_neighbours(grid, window, values.device)
    first = torch.arange(batch, device=values.device)[:, None, None] * tokens
    rows = (torch.arange(tokens, device=values.device)[:, None] + first).expand(batch, tokens, size)
    kept = inside.expand(batch, -1, -1)
    places = torch.stack([rows[kept], (neighbour + first)[kept]])
    side = batch * tokens
    return torch.sparse_coo_tensor(places, values[kept], (side, side), check_invariants=False).to_sparse_csr()


class Problem:
    """Inputs of every operation at one size: queries and keys, maps, seeds, affinities.

    Values are drawn on the CPU in float32 and then moved, so that they are the same on every device.
    """

    def __init__(self, size: Size, *, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self.size, self.seed, self.dtype, self.device = size, seed, dtype, device

    def input_bytes(self) -> int:
        """Bytes of all inputs that were made so far."""
        tensors = [value for value in vars(self).values() if isinstance(value, Tensor)]
        for value in vars(self).values():
            if isinstance(value, nk.affinity.Affinity):
                tensors += value.operator_arguments().tensors
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())  # a mixed affinity has no others

    def _draw(self, stream: int, *shape: int, normal: bool = False) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + stream)
        if self.device == "meta":
            return torch.empty(shape, dtype=self.dtype, device="meta")
        draw = torch.randn if normal else torch.rand
        return draw(shape, generator=generator).to(self.device, self.dtype)

    def _layer(self, stream: int) -> Tensor:
        size = self.size
        # as the projections of a UNet leave them: (B, N, heads · d), seen as (B, heads, N, d)
        packed = self._draw(stream, size.batch, size.tokens, size.heads, size.head_size, normal=True)
        return packed.transpose(1, 2)

    @cached_property
    def q(self) -> Tensor:
        """(B, heads, N, d)."""
        return self._layer(1)

    @cached_property
    def k(self) -> Tensor:
        """(B, heads, N, d)."""
        return self._layer(2)

    @cached_property
    def maps(self) -> Tensor:
        """Explicit attention maps (B, heads, N, N)."""
        size = self.size
        # uniform noise normalised: the softmax of the queries would take as long as the peers that make it
        maps = self._draw(3, size.batch, size.heads, size.tokens, size.tokens).float()
        return maps.div_(maps.sum(-1, keepdim=True)).to(self.dtype)

    @cached_property
    def lse(self) -> Tensor:
        """(B, heads, N), float32."""
        return nk.attention_entropy(self.q, self.k, return_lse=True)[1]

    @cached_property
    def entropy(self) -> Tensor:
        """(B, heads, N), float32."""
        return nk.attention_entropy(self.q, self.k)

    @cached_property
    def w(self) -> Tensor:
        """(B, heads), float32."""
        return self._draw(4, self.size.batch, self.size.heads).float().softmax(1)

    @cached_property
    def seeds(self) -> Tensor:
        """G (B, N, C), rows sum to 1."""
        size = self.size
        logits = 3 * self._draw(5, size.batch, size.tokens, size.labels, normal=True).float()
        return logits.softmax(-1).to(self.dtype)

    @cached_property
    def image(self) -> Tensor:
        """Colours of the tokens, (B, 3, H, W): for the refiners that look at an image."""
        return self._draw(6, self.size.batch, 3, *self.size.grid).float()

    @cached_property
    def local(self) -> nk.LocalAffinity:
        """Row-stochastic window weights."""
        size = self.size
        inside = window_neighbours(size.grid, (size.window, size.window))[1].to(self.device)
        values = (self._draw(7, size.batch, size.tokens, size.window**2).float() + 0.01) * inside
        values = values / values.sum(-1, keepdim=True)
        return nk.LocalAffinity(values.to(self.dtype), grid=size.grid, window=size.window)

    @cached_property
    def global_affinity(self) -> nk.LowRankAffinity:
        """Row-stochastic sums over cells."""
        size = self.size
        u = self._draw(8, size.batch, size.tokens, size.cells**2).float()
        u = u / u.sum(-1, keepdim=True)
        return nk.LowRankAffinity(u.to(self.dtype), grid=size.grid, cells=size.cells)

    @cached_property
    def mixed(self) -> nk.MixedAffinity:
        """β S_global + (1−β) S_local."""
        return nk.mix(self.global_affinity, self.local, BETA)

    @property
    def dense(self) -> Tensor:
        """The mixed affinity as a matrix (B, N, N) in float64, by its definition; made anew at each look."""
        size, pair = self.size, (self.size.cells, self.size.cells)
        global_part = reference.low_rank_to_dense(self.global_affinity.u, None, grid=size.grid, cells=pair)
        return reference.mix(global_part, self.dense_local, BETA)

    @property
    def dense_local(self) -> Tensor:
        """The local affinity as a matrix (B, N, N) in float64."""
        window = (self.size.window, self.size.window)
        return reference.window_to_dense(self.local.values, grid=self.size.grid, window=window)

    @cached_property
    def graph(self) -> nk.GraphAffinity:
        """So many neighbours of each token from anywhere, in order, one graph for the batch; rows sum to 1."""
        size = self.size
        order = self._draw(9, size.tokens, size.tokens).float().argsort(1)
        columns = order[:, : size.neighbours].sort(1).values.to(torch.int32).flatten()
        weights = self._draw(10, size.tokens, size.neighbours).float() + 0.01
        weights = (weights / weights.sum(1, keepdim=True)).to(self.dtype).flatten()
        pointers = torch.arange(size.tokens + 1, device=columns.device) * size.neighbours
        return nk.GraphAffinity(pointers, columns, weights)

    def csr(self) -> Tensor:
        """The local affinity as one sparse matrix (B·N, B·N), images along its diagonal."""
        return as_csr(self.local.values, self.size.grid, (self.size.window, self.size.window))
