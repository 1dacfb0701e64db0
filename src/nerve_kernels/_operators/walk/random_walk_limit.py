"""random_walk_limit: P_∞ = (1−α)(I − αS)⁻¹ G by a Krylov solve on the structured operator, with a certified bound.

It is solved by products in float32 and certified in float64. Since ‖(I − αS)⁻¹‖_∞ ≤ 1/(1 − αρ), where ρ bounds the
absolute row sums of S, the residual r of a solution bounds its error elementwise by ‖r‖_∞ / (1 − αρ). A symmetric S is
solved by ``conjugate_gradients``.
"""

from __future__ import annotations

import importlib
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nerve_kernels._arguments import AffinityArguments
from nerve_kernels._operators.checks import refusal
from nerve_kernels._operators.library import AFFINITY, Gradient, Operator

from .affinity_operator import AffinityOperator
from .conjugate_gradients import column_norms, solve_symmetric
from .cpp_affinity_operator import CppAffinityOperator
from .minimal_residual import Effort, largest_magnitude, solve_restart

DENSE_SOLVE_TOKENS = 256
"""Up to this many tokens a dense factorisation is cheaper than a Krylov solve."""


def _solve_dense(operator: AffinityOperator, right: Tensor, alpha: float, *, transpose: bool) -> Tensor:
    identity = torch.eye(right.shape[1], dtype=right.dtype, device=right.device).unsqueeze(0)
    matrix = identity - alpha * operator.apply(identity)
    return torch.linalg.solve(matrix.transpose(-1, -2) if transpose else matrix, right)


def _largest_row_sum(
    operator_class: type[AffinityOperator], affinity: AffinityArguments, alpha: float, effort: Effort
) -> float:
    """At least ρ, the largest absolute row sum of S (1 for a row-stochastic S), from the absolute values of its parts.

    Summed in float32, with what that may have lost added, where this leaves 1 − αρ as good as it was; else in float64.
    """
    first, tokens = affinity.tensors[0], affinity.num_tokens
    # parts are seldom negative, and a copy of them all costs more than a look at them
    least = torch.stack([part.amin().float() for part in affinity.tensors]).amin()
    magnitudes = affinity.map(torch.abs) if effort.read(least) < 0 else affinity

    def sums(dtype: torch.dtype) -> float:
        ones = torch.ones((1, tokens, 1), dtype=dtype, device=first.device)
        return effort.read(operator_class(magnitudes.map(lambda part: part.to(dtype)), dtype).apply(ones).max())

    if affinity.v is None and affinity.dense is None and affinity.local_kind != "graph":
        # terms of a row and of a cell's average, one after the other at worst, and the few products around them
        in_cell = (
            1
            if affinity.u is None
            else math.prod(-(-side // count) for side, count in zip(affinity.grid, affinity.cells, strict=True))
        )
        terms = in_cell + sum(part.shape[-1] for part in affinity.tensors) + 8
        rho, lost = sums(torch.float32), terms * 2.0**-24
        if alpha * rho * lost < 0.01 * (1 - alpha * rho):
            return rho * (1 + lost)
    return sums(torch.float64)


def solve(
    operator_class: type[AffinityOperator], seeds: Tensor, affinity: AffinityArguments, alpha: float, tol: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(P, bound on |P − P_∞|, counts); the bound includes the rounding to the seeds' dtype.

    The counts are those of products with S, of those of them in float64, and of values read from the device.
    """
    effort = Effort()
    if affinity.symmetric:
        return _solve_symmetric(operator_class, seeds, affinity, alpha, tol, effort)
    rho = _largest_row_sum(operator_class, affinity, alpha, effort) if seeds.numel() else 1.0
    if alpha * rho >= 1:
        came = f"{alpha:.6g} · {rho:.6g} = {alpha * rho:.6g}, with which the walk need not converge"
        do = "normalise the rows of the affinity to sum to 1"
        raise ValueError(refusal("affinity", "alpha · largest absolute row sum < 1", came, do))
    operator = operator_class(affinity, torch.float64)
    restart = (1 - alpha) * seeds.double()
    if 0 < seeds.shape[1] <= DENSE_SOLVE_TOKENS:
        solution = _solve_dense(operator, restart, alpha, transpose=False).expand(restart.shape)
        residual = restart - solution + alpha * operator.apply(solution)
    else:
        # what rounding the result to the seeds' dtype will take of the tolerance, at most half of it, is left to that
        largest = effort.read_largest(restart) / (1 - alpha * rho) if seeds.numel() else 0.0
        rounding = 0.5 * torch.finfo(seeds.dtype).eps * largest
        target = max(0.5 * tol, 0.95 * (tol - rounding)) * (1 - alpha * rho)
        narrow = _narrow(operator_class, affinity)
        solution, residual = solve_restart(narrow.apply, operator.apply, restart, alpha, target, effort)
    result = solution.to(seeds.dtype)
    bound = restart.new_zeros(())
    if seeds.numel():
        bound = largest_magnitude(residual) / (1 - alpha * rho) + largest_magnitude(result.double() - solution)
    return result.contiguous(), bound, torch.tensor([effort.products, effort.wide_products, effort.readings])


def _solve_symmetric(
    operator_class: type[AffinityOperator],
    seeds: Tensor,
    affinity: AffinityArguments,
    alpha: float,
    tol: float,
    effort: Effort,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same where S = Sᵀ has no eigenvalue beyond 1: certified in ‖·‖₂, column by column."""
    operator, narrow = operator_class(affinity, torch.float64), _narrow(operator_class, affinity)
    restart = (1 - alpha) * seeds.double()
    # half of the tolerance is left to rounding the result to the seeds' dtype
    target = 0.5 * tol * (1 - alpha)
    solution, residual = solve_symmetric(narrow.apply, operator.apply, restart, alpha, target, effort)
    result = solution.to(seeds.dtype)
    bound = restart.new_zeros(())
    if seeds.numel():
        bound = column_norms(residual).max() / (1 - alpha) + largest_magnitude(result.double() - solution)
    return result.contiguous(), bound, torch.tensor([effort.products, effort.wide_products, effort.readings])


def _narrow(operator_class: type[AffinityOperator], affinity: AffinityArguments) -> AffinityOperator:
    """S in float32, from parts in float32: products with bfloat16 parts may be coarser, which would cost cycles."""
    return operator_class(affinity.map(Tensor.float), torch.float32)


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
    if affinity.symmetric:
        effort, narrow = Effort(), _narrow(operator_class, affinity)
        target = tol * effort.read(column_norms(wide).max()) if wide.numel() else 0.0
        adjoint, _ = solve_symmetric(narrow.apply, operator.apply, wide, alpha, target, effort)
    elif 0 < seeds.shape[1] <= DENSE_SOLVE_TOKENS:
        adjoint = _solve_dense(operator, wide, alpha, transpose=True).expand(wide.shape)
    else:
        effort, narrow = Effort(), _narrow(operator_class, affinity)
        target = tol * effort.read_largest(wide) if wide.numel() else 0.0
        adjoint, _ = solve_restart(narrow.apply_transpose, operator.apply_transpose, wide, alpha, target, effort)
    return (1 - alpha) * adjoint, *operator.gradient(alpha * adjoint, limit.double())


def fake(seeds: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """P, the bound, and the counts."""
    return (
        seeds.new_empty(seeds.shape),
        seeds.new_empty((), dtype=torch.float64),
        torch.empty(3, dtype=torch.int64),
    )


class _TritonAffinityOperator(AffinityOperator):
    """:class:`AffinityOperator` with products in float32 by the walk's kernels, each kind of P planned for once."""

    def __init__(self, affinity: AffinityArguments, dtype: torch.dtype) -> None:
        super().__init__(affinity, dtype)
        self._planned: dict[torch.Size, Any] = {}

    def apply(self, p: Tensor) -> Tensor:
        """S P: one step with α = 1."""
        if self.dtype != torch.float32:
            return super().apply(p)
        if p.shape[0] == 1:
            p = p.expand(self.stored.batch, -1, -1)
        if p.shape not in self._planned:
            walks = importlib.import_module("nerve_kernels._triton.walk.random_walk")
            self._planned[p.shape] = walks.WalkOperator(self.stored, 1.0, p)
        product: Tensor = self._planned[p.shape].product(p)
        return product


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
    triton=partial(solve, _TritonAffinityOperator),
    vmap=False,
)
