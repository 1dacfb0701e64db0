"""The limit of the walk: its certificate on every kind of input, and what it costs, counted."""

from __future__ import annotations

import pytest
import torch
from tests.ops.problems import WalkProblem, walk_problem
from torch import Tensor

import nerve_kernels as nk

GRID = (17, 16)  # more tokens than are solved densely
SOLVER_BACKENDS = [name for name in nk.available_backends() if name in ("cpp", "eager")]


def exact_limit(seeds: Tensor, dense: Tensor, alpha: float) -> Tensor:
    """(1−α)(I − αS)⁻¹ G by elimination in float64."""
    matrix = torch.eye(dense.shape[-1], dtype=torch.float64) - alpha * dense.double()
    return torch.linalg.solve(matrix, (1 - alpha) * seeds.double())


def problem_of(kind: str, seed: int, dtype: torch.dtype) -> tuple[Tensor, nk.Affinity | Tensor, Tensor]:
    """Seeds, an affinity, and that as a matrix."""
    batch, own = (2, 2) if kind == "batch" else (2, 1)
    cells = None if kind == "explicit factors" else (5, 4)
    problem = walk_problem(seed, GRID, labels=5, batch=batch, affinity_batch=own, window=(5, 3), cells=cells)
    generator = torch.Generator().manual_seed(seed)
    seeds, affinity = problem.seeds.to(dtype), problem.mixed(0.4).to(dtype)
    if kind == "any seeds":
        seeds = (100 * torch.randn(seeds.shape, generator=generator, dtype=torch.float64)).to(dtype)
    if kind == "rows below 1":
        shrink = torch.rand(1, seeds.shape[1], 1, generator=generator, dtype=torch.float64).to(dtype)
        local, low_rank = problem.local.to(dtype), problem.low_rank.to(dtype)
        affinity = nk.mix(
            nk.LowRankAffinity(low_rank.u * shrink, grid=GRID, cells=low_rank.cells),
            nk.LocalAffinity(local.values * shrink, grid=GRID, window=local.window),
            0.4,
        )
    dense = affinity.double().to_dense() if hasattr(affinity, "double") else affinity.to(torch.float64).to_dense()
    if kind == "dense, of either sign":
        dense = (dense * torch.randn(dense.shape, generator=generator, dtype=torch.float64).sign()).to(dtype)
        return seeds, dense, dense.double()
    return seeds, affinity, dense


@pytest.mark.parametrize("backend", SOLVER_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "kind", ["cells", "explicit factors", "batch", "any seeds", "rows below 1", "dense, of either sign"]
)
def test_no_error_is_larger_than_its_bound(kind, dtype, backend):
    for seed, (alpha, tol) in enumerate([(0.0, 1e-6), (0.5, 1e-6), (0.9, 1e-4), (0.99, 1e-6), (0.999, 1e-6)]):
        seeds, affinity, dense = problem_of(kind, 20 + seed, dtype)
        wanted = tol * float(seeds.abs().max())
        result, bound = nk.random_walk_limit(
            seeds, affinity, alpha=alpha, tol=wanted, return_bound=True, backend=backend
        )
        error = float((result.double() - exact_limit(seeds, dense, alpha)).abs().max())
        assert error <= bound * (1 + 1e-9) + 1e-13 * float(seeds.abs().max()), (alpha, error, bound)
        assert bound <= wanted, (alpha, bound)


@pytest.mark.parametrize("backend", SOLVER_BACKENDS)
def test_tolerances_that_only_float64_can_certify(backend):
    for alpha, tol in [(0.5, 1e-12), (0.9, 1e-12), (0.99, 1e-11)]:
        seeds, affinity, dense = problem_of("cells", 30, torch.float64)
        result, bound = nk.random_walk_limit(seeds, affinity, alpha=alpha, tol=tol, return_bound=True, backend=backend)
        assert bound <= tol
        assert float((result - exact_limit(seeds, dense, alpha)).abs().max()) <= bound + 1e-14


def counts_of(problem: WalkProblem, alpha: float, tol: float) -> tuple[int, int, int]:
    """Products with S, those of them in float64, readings."""
    arguments = problem.mixed(0.5).operator_arguments()
    counts = torch.ops.nerve_kernels.random_walk_limit(problem.seeds, *arguments, alpha, tol)[2]
    products, wide, readings = counts.tolist()
    return products, wide, readings


@pytest.mark.parametrize("alpha", [0.5, 0.9, 0.99])
def test_products_are_in_float32_and_seldom_read(alpha):
    problem = walk_problem(31, (24, 24), labels=6, window=(7, 7), cells=(6, 6), dtype=torch.float32)
    products, wide, readings = counts_of(problem, alpha, 1e-6)
    assert wide <= 2
    assert products <= 18
    # the row sums, the seeds, the residual at the start and at the end of one or two cycles; in between one in four
    assert readings <= 6 + products // 3


def test_an_affinity_in_which_minimal_residuals_stand_still():
    """A ring on which each token sees the next: no short cycle helps, and plain steps finish."""
    tokens = 300
    ring = torch.eye(tokens, dtype=torch.float64).roll(1, 1)[None]
    seeds = torch.zeros(1, tokens, 2, dtype=torch.float64)
    seeds[0, 0, 0] = seeds[0, 7, 1] = 1
    result, bound = nk.random_walk_limit(seeds, ring, alpha=0.99, tol=1e-9, return_bound=True)
    assert bound <= 1e-9
    assert float((result - exact_limit(seeds, ring, 0.99)).abs().max()) <= bound


def test_seeds_of_any_magnitude_keep_their_digits():
    problem = walk_problem(32, GRID, labels=3)
    mixed, dense = problem.mixed(0.5), problem.dense(0.5)
    for magnitude in (1e-200, 1e-30, 1e30, 1e200):
        seeds = magnitude * problem.seeds
        result, bound = nk.random_walk_limit(seeds, mixed, alpha=0.9, tol=1e-9 * magnitude, return_bound=True)
        assert bound <= 1e-9 * magnitude
        assert float((result - exact_limit(seeds, dense, 0.9)).abs().max()) <= 1e-9 * magnitude


def test_the_limit_of_nothing_and_of_zeros():
    problem = walk_problem(33, GRID, labels=3)
    for seeds in (problem.seeds[:, :, :0], torch.zeros_like(problem.seeds)):
        result, bound = nk.random_walk_limit(seeds, problem.mixed(0.5), alpha=0.9, return_bound=True)
        assert torch.equal(result, seeds)
        assert bound == 0
