"""random_walk_limit: P_∞ = (1−α)(I − αS)⁻¹ G by a Krylov solve on the structured operator, with a certified bound.

Everything is solved and certified in float64. Since ‖(I − αS)⁻¹‖_∞ ≤ 1/(1 − αρ), where ρ bounds the absolute row sums
of S, the residual r of a solution bounds its error elementwise by ‖r‖_∞ / (1 − αρ).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nerve_kernels._arguments import AffinityArguments
from nerve_kernels._operators.checks import refusal
from nerve_kernels._operators.library import AFFINITY, Gradient, Operator

from .affinity_operator import AffinityOperator
from .cpp_affinity_operator import CppAffinityOperator

DENSE_SOLVE_TOKENS = 256
"""Up to this many tokens a dense factorisation is cheaper than a Krylov solve."""

KRYLOV_ITERATIONS = 200
"""Where BiCGSTAB has not converged by then, plain walk steps, which always contract by α, finish the work."""

LinearMap = Callable[[Tensor], Tensor]


class _CountedOperator:
    """A linear map that counts how often it is applied."""

    def __init__(self, function: LinearMap) -> None:
        self.function, self.count = function, 0

    def __call__(self, p: Tensor) -> Tensor:
        self.count += 1
        return self.function(p)


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """0 where the denominator is 0: a label column that has converged (or broken down) stands still."""
    return torch.where(denominator == 0, 0, numerator / denominator)


def solve_restart(product: LinearMap, right: Tensor, start: Tensor, alpha: float, target: float) -> Tensor:
    """X with ‖right − X + α·product(X)‖_∞ ≤ target: BiCGSTAB for all label columns at once, each with its own scalars.

    Bitwise repeatable: sums are taken by torch's own reductions in a fixed order.
    """

    def residual_of(x: Tensor) -> Tensor:
        return right - x + alpha * product(x)

    x, residual = start, residual_of(start)
    shadow, direction = residual, torch.zeros_like(residual)
    image, rho = torch.zeros_like(residual), torch.ones_like(residual[:, :1])
    step, damping = torch.ones_like(rho), torch.ones_like(rho)
    best, best_norm = x, float(residual.abs().max()) if residual.numel() else 0.0
    for _ in range(KRYLOV_ITERATIONS):
        if best_norm <= target:
            break
        new_rho = (shadow * residual).sum(1, keepdim=True)
        direction = residual + _divide(new_rho, rho) * _divide(step, damping) * (direction - damping * image)
        image = direction - alpha * product(direction)
        step = _divide(new_rho, (shadow * image).sum(1, keepdim=True))
        half = residual - step * image
        half_image = half - alpha * product(half)
        damping = _divide((half_image * half).sum(1, keepdim=True), half_image.square().sum(1, keepdim=True))
        x = x + step * direction + damping * half
        residual, rho = half - damping * half_image, new_rho
        norm = float(residual.abs().max())
        if not math.isfinite(norm):
            break
        if norm < best_norm:
            best, best_norm = x, norm
    # the recursive residual drifts from the true one, so the true one decides; walk steps close what is left
    residual = residual_of(best)
    while residual.numel() and (norm := float(residual.abs().max())) > target and alpha > 0:
        stepped = best + residual
        residual = residual_of(stepped)
        if not float(residual.abs().max()) < norm:
            break  # float64 itself is exhausted
        best = stepped
    return best


def _solve_dense(operator: AffinityOperator, right: Tensor, alpha: float, *, transpose: bool) -> Tensor:
    identity = torch.eye(right.shape[1], dtype=right.dtype, device=right.device).unsqueeze(0)
    matrix = identity - alpha * operator.apply(identity)
    return torch.linalg.solve(matrix.transpose(-1, -2) if transpose else matrix, right)


def largest_row_sum(affinity: AffinityArguments) -> float:
    """ρ: the largest absolute row sum of S (1 for a row-stochastic S), from the absolute values of its parts."""
    first = affinity.tensors[0]
    ones = torch.ones((1, first.shape[1], 1), dtype=torch.float64, device=first.device)
    return float(AffinityOperator(affinity.map(torch.abs), torch.float64).apply(ones).max())


def solve(
    operator_class: type[AffinityOperator], seeds: Tensor, affinity: AffinityArguments, alpha: float, tol: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(P, bound on |P − P_∞| including the rounding to the seeds' dtype, operator applications)."""
    rho = largest_row_sum(affinity) if seeds.numel() else 1.0
    if alpha * rho >= 1:
        came = f"{alpha:.6g} · {rho:.6g} = {alpha * rho:.6g}, with which the walk need not converge"
        do = "normalise the rows of the affinity to sum to 1"
        raise ValueError(refusal("affinity", "alpha · largest absolute row sum < 1", came, do))
    operator = operator_class(affinity, torch.float64)
    product = _CountedOperator(operator.apply)
    wide = seeds.double()
    restart = (1 - alpha) * wide
    if 0 < seeds.shape[1] <= DENSE_SOLVE_TOKENS:
        solution = _solve_dense(operator, restart, alpha, transpose=False).expand(wide.shape)
    else:
        # half of the tolerance for the solve, the rest for rounding the result
        solution = solve_restart(product, restart, wide, alpha, 0.5 * tol * (1 - alpha * rho))
    residual = restart - solution + alpha * product(solution)
    result = solution.to(seeds.dtype)
    bound = wide.new_zeros(())
    if seeds.numel():
        bound = residual.abs().max() / (1 - alpha * rho) + (result.double() - solution).abs().max()
    return result.contiguous(), bound, torch.tensor(product.count)


def solve_adjoint(
    operator_class: type[AffinityOperator],
    grad: Tensor,
    seeds: Tensor,
    affinity: AffinityArguments,
    alpha: float,
    tol: float,
    limit: Tensor,
) -> tuple[Tensor | None, ...]:
    """Implicit differentiation: (I − αSᵀ) λ = g, then dG = (1−α) λ and dS = α λ P_∞ᵀ."""
    operator = operator_class(affinity, torch.float64)
    wide = grad.double()
    if 0 < seeds.shape[1] <= DENSE_SOLVE_TOKENS:
        adjoint = _solve_dense(operator, wide, alpha, transpose=True).expand(wide.shape)
    else:
        largest = float(wide.abs().max()) if wide.numel() else 0.0
        adjoint = solve_restart(operator.apply_transpose, wide, wide, alpha, tol * largest)
    return (1 - alpha) * adjoint, *operator.gradient(alpha * adjoint, limit.double())


def fake(seeds: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """P, the bound, and the count."""
    return (
        seeds.new_empty(seeds.shape),
        seeds.new_empty((), dtype=torch.float64),
        torch.empty((), dtype=torch.int64),
    )


random_walk_limit = Operator(
    f"random_walk_limit(Tensor seeds, {AFFINITY}, float alpha, float tol) -> (Tensor, Tensor, Tensor)",
    eager=partial(solve, AffinityOperator),
    fake=fake,
    backward=Gradient(
        partial(solve_adjoint, AffinityOperator),
        cpp=partial(solve_adjoint, CppAffinityOperator),
        saves_results=True,
        results=1,
        differentiable=False,  # it would be through the iterations of a solver, which are not the solution's
    ),
    cpp=partial(solve, CppAffinityOperator),
    vmap=False,
)
