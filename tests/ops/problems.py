"""Seeded problems that the operators' tests share, and the error they are judged by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import nerve_kernels as nk
from nerve_kernels import reference


def relative_error(result: Tensor, expected: Tensor) -> float:
    """‖x − ref‖ / ‖ref‖."""
    difference = (result.detach().double() - expected.detach().double()).norm()
    return float(difference / expected.detach().double().norm().clamp(min=1e-300))


def queries_and_keys(
    seed: int, batch: int, heads: int, queries: int, keys: int, size: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """q and k of unit variance."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, heads, queries, size, generator=generator, dtype=torch.float64).to(dtype)
    k = torch.randn(batch, heads, keys, size, generator=generator, dtype=torch.float64).to(dtype)
    return q, k


def random_weights(seed: int, batch: int, heads: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Head weights that sum to 1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, heads, generator=generator, dtype=torch.float64).softmax(1).to(dtype)


@dataclass(frozen=True)
class WalkProblem:
    """Seeds and an affinity, structured and dense."""

    seeds: Tensor
    low_rank: nk.LowRankAffinity
    local: nk.LocalAffinity

    def mixed(self, beta: float) -> nk.MixedAffinity:
        """β S_global + (1−β) S_local."""
        return nk.mix(self.low_rank, self.local, beta)

    def dense(self, beta: float) -> Tensor:
        """The same in dense float64, by the reference."""
        low_rank, local = self.low_rank, self.local
        return reference.mix(
            reference.low_rank_to_dense(low_rank.u, low_rank.v, grid=low_rank.grid, cells=low_rank.cells),
            reference.window_to_dense(local.values, grid=local.grid, window=local.window),
            beta,
        )


def stochastic_window(
    generator: torch.Generator, batch: int, grid: tuple[int, int], window: tuple[int, int], dtype: torch.dtype
) -> nk.LocalAffinity:
    """A window affinity with random rows that sum to 1."""
    tokens = grid[0] * grid[1]
    matrix = torch.rand(batch, tokens, tokens, generator=generator, dtype=torch.float64) + 0.01
    affinity = nk.LocalAffinity.from_dense(matrix, grid=grid, window=window)
    return affinity.to(dtype)


def walk_problem(
    seed: int,
    grid: tuple[int, int],
    *,
    labels: int = 3,
    batch: int = 1,
    affinity_batch: int | None = None,
    window: tuple[int, int] = (3, 3),
    cells: tuple[int, int] | None = (2, 2),
    dtype: torch.dtype = torch.float64,
) -> WalkProblem:
    """A row-stochastic problem; ``cells=None`` gives explicit factors u and v instead."""
    generator = torch.Generator().manual_seed(seed)
    tokens = grid[0] * grid[1]
    many = affinity_batch or batch
    logits = 3 * torch.randn(batch, tokens, labels, generator=generator, dtype=torch.float64)
    rank = cells[0] * cells[1] if cells is not None else 3
    u = torch.rand(many, tokens, rank, generator=generator, dtype=torch.float64)
    u = u / u.sum(-1, keepdim=True)
    v = None
    if cells is None:
        v = torch.rand(many, tokens, rank, generator=generator, dtype=torch.float64)
        v = (v / v.sum(1, keepdim=True)).to(dtype)
    return WalkProblem(
        seeds=logits.softmax(-1).to(dtype),
        low_rank=nk.LowRankAffinity(u.to(dtype), v, grid=grid, cells=cells),
        local=stochastic_window(generator, many, grid, window, dtype),
    )
