"""What LPOSS and LPOSS+ share: (I − αS) X = Y on a symmetric S, all labels at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from nerve_kernels._operators.checks import check_count, check_number, check_optional
from nerve_kernels._operators.dispatch import why_unsupported_cpp
from nerve_kernels._operators.library import accumulation_dtype
from nerve_kernels._operators.walk.conjugate_gradients import MAX_CYCLE, column_norms, iterate, solve_symmetric
from nerve_kernels._operators.walk.cpp_affinity_operator import stencil_solve_cpp
from nerve_kernels._operators.walk.minimal_residual import Effort, correct_in_cycles
from nerve_kernels.affinity import GraphAffinity, LocalAffinity

SOLUTION_BYTES = 1 << 26
"""Of one vector of the solver in float64: labels are taken in blocks of so many, and a solver has about ten vectors."""


def check_solver(alpha: float, iterations: int | None, tol: float) -> tuple[float, int | None, float]:
    """α in [0, 1), the count of iterations or None, and the tolerance."""
    share = check_number("alpha", alpha, low=0, high=1, high_open=True, wanted="in [0, 1)")
    count = check_optional(check_count, "iterations", iterations, low=1)
    return share, count, check_number("tol", tol, low=0, wanted="> 0", low_open=True)


def propagate(
    affinity: GraphAffinity | LocalAffinity, y: Tensor, alpha: float, iterations: int | None, tol: float
) -> Tensor:
    """X of (I − αS) X = Y for Y (B, N, C), in the dtype of Y.

    With ``iterations`` so many of conjugate gradients from X = 0, each column with its own steps; else until every
    column's residual certifies an elementwise error of ``tol``.
    """
    columns = max(1, SOLUTION_BYTES // max(1, 8 * y.shape[0] * y.shape[1]))
    solved = y.new_empty(y.shape)
    for first in range(0, y.shape[2], columns):
        block = slice(first, first + columns)
        solved[:, :, block] = _propagate(affinity, y[:, :, block], alpha, iterations, tol)
    return solved


def _propagate(
    affinity: GraphAffinity | LocalAffinity, y: Tensor, alpha: float, iterations: int | None, tol: float
) -> Tensor:
    # an empty row of a graph is the identity's in a walk, and of zeros here
    connected = affinity.row_pointers.diff(dim=1).unsqueeze(2) > 0 if isinstance(affinity, GraphAffinity) else None

    def product(p: Tensor) -> Tensor:
        found = affinity @ p
        return found if connected is None else found * connected

    inner = _compiled_solver(affinity, y, alpha)
    if iterations is not None:
        right = y.to(accumulation_dtype(y))
        solved = iterate(product, right, alpha, iterations, 0.0)[0] if inner is None else inner(right, 0.0, iterations)
        return solved.to(y.dtype)
    right, target = y.double(), tol * (1 - alpha)
    if inner is None:
        solution, residual = solve_symmetric(product, product, right, alpha, target, Effort())
    else:
        solution, residual, _ = correct_in_cycles(
            inner, product, right, alpha, target, _largest_norm, dtypes=(torch.float32,)
        )
    bound = _largest_norm(residual) / (1 - alpha)
    if not bound <= tol:
        warnings.warn(f"label propagation: certified to {bound:.3g}, not to tol={tol:.3g}", stacklevel=4)
    return solution.to(y.dtype)


def _compiled_solver(affinity: GraphAffinity | LocalAffinity, y: Tensor, alpha: float) -> Callable[..., Tensor] | None:
    """All steps on a stencil in one call: (right, iterations, relative tolerance) to X; None where there is none."""
    arguments = affinity.operator_arguments()
    tracked = torch.is_grad_enabled() and (y.requires_grad or affinity.values.requires_grad)  # it has no gradient
    if tracked or arguments.local_kind != "stencil" or why_unsupported_cpp(y, affinity.values) is not None:
        return None
    grid, offsets = list(arguments.grid), [step for offset in arguments.offsets() for step in offset]

    def solve(right: Tensor, tolerance: float, iterations: int = MAX_CYCLE) -> Tensor:
        found: Tensor = stencil_solve_cpp(
            right, affinity.values, grid, offsets, arguments.clamp, alpha, iterations, tolerance
        )
        return found

    return solve


def _largest_norm(columns: Tensor) -> float:
    return float(column_norms(columns).max()) if columns.numel() else 0.0
