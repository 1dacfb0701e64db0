"""Conjugate gradients on a lone stencil, compiled, against a dense solution and the same iterations in plain torch."""

from __future__ import annotations

import pytest
import torch
from tests.ops.problems import relative_error
from torch import Tensor

import nerve_kernels as nk
from nerve_kernels import _native, reference
from nerve_kernels._operators.walk.conjugate_gradients import iterate
from nerve_kernels._operators.walk.cpp_affinity_operator import stencil_solve_cpp

pytestmark = pytest.mark.skipif(not _native.extension_loaded(), reason=f"no extension: {_native.load_error()}")

ALPHA = 0.9


def problem(grid: tuple[int, int], labels: int, dtype: torch.dtype = torch.float64) -> tuple[nk.LocalAffinity, Tensor]:
    """D^−½ W D^−½ of a smooth image, and right-hand sides of either sign."""
    generator = torch.Generator().manual_seed(labels)
    image = torch.rand(2, 3, *grid, generator=generator, dtype=torch.float64).to(dtype)
    affinity = nk.pixel_affinity(image, kind="lab", window=5, tau=0.3, normalize="symmetric")
    right = torch.randn(2, grid[0] * grid[1], labels, generator=generator, dtype=torch.float64)
    return affinity, right.to(dtype)


def solve(affinity: nk.LocalAffinity, right: Tensor, iterations: int, tolerance: float = 0.0) -> Tensor:
    arguments = affinity.operator_arguments()
    offsets = [step for offset in arguments.offsets() for step in offset]
    result: Tensor = stencil_solve_cpp(
        right, affinity.values, list(affinity.grid), offsets, arguments.clamp, ALPHA, iterations, tolerance
    )
    return result


@pytest.mark.parametrize("labels", [1, 9])
@pytest.mark.parametrize("grid", [(7, 9), (11, 70)])
def test_enough_iterations_are_the_solution(grid: tuple[int, int], labels: int) -> None:
    affinity, right = problem(grid, labels)
    offsets = affinity.operator_arguments().offsets()
    dense = reference.stencil_to_dense(affinity.values, grid=grid, offsets=offsets)
    expected = torch.linalg.solve(torch.eye(dense.shape[1]).double() - ALPHA * dense, right)
    assert relative_error(solve(affinity, right, 200, 1e-13), expected) < 1e-11


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_few_iterations_are_those_of_plain_torch(dtype: torch.dtype) -> None:
    affinity, right = problem((11, 70), 8, dtype)
    expected, _ = iterate(lambda p: affinity @ p, right, ALPHA, 6, 0.0)
    assert relative_error(solve(affinity, right, 6), expected) < (1e-12 if dtype == torch.float64 else 1e-5)


def test_a_label_stops_at_its_own_tolerance() -> None:
    affinity, right = problem((7, 9), 2)
    right[..., 1] = 0
    solution = solve(affinity, right, 50, 1e-3)
    left = right - solution + ALPHA * (affinity @ solution)
    assert (left.norm(dim=1) <= 1e-3 * right.norm(dim=1)).all()
    assert solution[..., 1].eq(0).all()
    assert left[..., 0].norm() > 1e-6


def test_bitwise_the_same_for_any_number_of_threads() -> None:
    affinity, right = problem((37, 70), 9, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(solve(affinity, right, 5))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_nothing_in_nothing_out_and_no_iteration_is_zero() -> None:
    affinity, right = problem((4, 5), 3)
    assert solve(affinity, right[..., :0], 3).shape == (2, 20, 0)
    assert solve(affinity, right, 0).eq(0).all()


def test_refuses_what_it_cannot_compute() -> None:
    affinity, right = problem((4, 5), 3)
    with pytest.raises(RuntimeError, match=r"right: expected \(B, N, C\), got 2 dimensions"):
        solve(affinity, right[0], 3)
    with pytest.raises(RuntimeError, match="iterations: expected 0 or more, got -1"):
        solve(affinity, right, -1)


def test_gradients_go_through_plain_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    image, scores = (torch.rand(1, 3, 5, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    scores.requires_grad_()

    def call(given: Tensor) -> Tensor:
        return nk.refiners.lposs_plus(image, given, window=3, tau=0.3, iterations=3)

    result = call(scores)
    assert result.requires_grad
    assert relative_error(result, call(scores.detach())) < 1e-12
    # conjugate gradients are no linear map of their right-hand side, but have its scale
    (gradient,) = torch.autograd.grad(result.sum(), scores)
    assert abs((gradient * scores).sum() - result.sum()) < 1e-9
