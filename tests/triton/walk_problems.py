"""Walks and their gradients, solved by a kernel module and judged against the definition; shared with the mutants."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tests.ops.problems import relative_error
from torch import Tensor

from nerve_kernels import reference
from nerve_kernels._arguments import AffinityArguments, match_gradient
from nerve_kernels._operators.walk import random_walk_backward
from nerve_kernels.grids import window_neighbours

TOLERANCE = 1e-6  # float32 sums, a few steps
KINDS = ("local", "cells", "mixed", "factors", "mixed factors", "dense")
BETA, ALPHA, RANK = 0.6, 0.8, 19
Grid = tuple[int, int]


@dataclass(frozen=True)
class Problem:
    """One walk; by default more than one tile, block of U's columns and part of the halo, with remainders."""

    kind: str = "mixed"
    grid: Grid = (8, 18)
    window: Grid = (3, 5)
    cells: Grid = (8, 9)
    labels: int = 5
    steps: int = 2
    batch: int = 1
    affinity_batch: int = 1
    dtype: torch.dtype = torch.float32
    seeds_dtype: torch.dtype = torch.float32
    normalize: bool = True
    alpha: float = ALPHA

    def parts(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """Window values (NaN off the grid), u, v and dense; rows of S sum to 1, but for explicit factors."""
        generator = torch.Generator().manual_seed(5)
        tokens, batch = math.prod(self.grid), self.affinity_batch

        def stochastic(columns: int, kept: Tensor | bool = True) -> Tensor:
            weights = torch.rand(batch, tokens, columns, generator=generator) * kept
            return (weights / weights.sum(-1, keepdim=True)).to(self.dtype)

        values = u = v = None
        if self.kind == "dense":
            return None, None, None, stochastic(tokens)
        if self.kind in ("local", "mixed", "mixed factors"):
            inside = window_neighbours(self.grid, self.window)[1]
            values = torch.where(inside, stochastic(math.prod(self.window), inside), math.nan)
        if self.kind in ("cells", "mixed"):
            u = stochastic(math.prod(self.cells))
        if self.kind in ("factors", "mixed factors"):
            u, v = stochastic(RANK), stochastic(RANK) / tokens
        return values, u, v, None

    def seeds(self) -> Tensor:
        """G, with a row of zeros."""
        generator = torch.Generator().manual_seed(6)
        seeds = torch.rand(self.batch, math.prod(self.grid), self.labels, generator=generator)
        seeds[0, 0] = 0
        return seeds.to(self.seeds_dtype)

    def arguments(self) -> tuple[Any, ...]:
        """As ``run`` of the walk takes them."""
        values, u, v, dense = self.parts()
        grid = [0, 0] if dense is not None else list(self.grid)
        window = [0, 0] if values is None else list(self.window)
        cells = list(self.cells) if u is not None and v is None else [0, 0]
        affinity = AffinityArguments(values, u, v, dense, grid=grid, window=window, cells=cells, beta=BETA)
        return self.seeds(), affinity, self.alpha, self.steps, self.normalize

    def affinity(self) -> Tensor:
        """S in float64."""
        values, u, v, dense = self.parts()
        if dense is not None:
            return dense.double().expand(self.batch, -1, -1)
        share = BETA if u is not None and values is not None else (0.0 if u is None else 1.0)
        total = torch.zeros((), dtype=torch.float64)
        if u is not None:
            cells = self.cells if v is None else None
            total = total + share * reference.low_rank_to_dense(u, v, grid=self.grid, cells=cells)
        if values is not None:
            total = total + (1 - share) * reference.window_to_dense(values, grid=self.grid, window=self.window)
        return total.expand(self.batch, -1, -1)

    def expected(self) -> Tensor:
        """P_L in float64."""
        return reference.random_walk(
            self.seeds(), self.affinity(), alpha=self.alpha, steps=self.steps, normalize=self.normalize
        )


def random_walk(run: Callable[..., Any], make: type[Problem] = Problem, **options: Any) -> None:
    """The walk of a problem against its definition."""
    problem = make(**options)
    result = run(*problem.arguments())
    assert result.dtype == problem.seeds_dtype
    tolerance = TOLERANCE if problem.seeds_dtype == torch.float32 else 5e-4  # rounding of the result, 2⁻¹¹
    assert relative_error(result, problem.expected()) < tolerance


def walk_gradients(run: Callable[..., Any], make: type[Problem] = Problem, **options: Any) -> None:
    """Gradients of a problem against those of eager, in float64."""
    problem = make(**options)
    seeds, affinity, *options = problem.arguments()
    grad = torch.randn(seeds.shape, generator=torch.Generator().manual_seed(7))
    expected = random_walk_backward.eager(grad.double(), seeds.double(), affinity.map(Tensor.double), *options)
    names = ("seeds", "values", "u", "v", "dense")
    found_gradients = run(grad, seeds, affinity, *options)
    for name, found, wanted, part in zip(names, found_gradients, expected, (seeds, *affinity.parts), strict=True):
        found, wanted = match_gradient(found, part), match_gradient(wanted, None if part is None else part.double())
        if part is None:
            assert found is wanted is None
            continue
        assert found.dtype == part.dtype
        tolerance = 2 * TOLERANCE if part.dtype == torch.float32 else 5e-4
        assert relative_error(found, wanted) < tolerance, name


def window_product(run: Callable[..., Any], **options: Any) -> None:
    """S_local P against its definition; either batch may be 1."""
    problem = Problem(**{"kind": "local", **options})
    seeds, (values, *_), *_ = problem.arguments()
    result = run(values, seeds, list(problem.grid), list(problem.window))
    dense = reference.window_to_dense(values, grid=problem.grid, window=problem.window)
    assert result.dtype == seeds.dtype
    assert relative_error(result, dense @ seeds.double()) < TOLERANCE


WALK_PROBLEMS = {"random_walk": random_walk, "random_walk_backward": walk_gradients, "window_product": window_product}
