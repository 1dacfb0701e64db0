"""The adjoint of random_walk: λ ← α Sᵀ λ, with the gradients of G and of the parts of S gathered on the way."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from nerve_kernels._arguments import AffinityArguments, Parts

from .affinity_operator import AffinityOperator, add_parts, row_totals, working_dtype
from .cpp_affinity_operator import CppAffinityOperator


def adjoint_walk(
    operator_class: type[AffinityOperator],
    grad: Tensor,
    seeds: Tensor,
    affinity: AffinityArguments,
    alpha: float,
    steps: int,
    normalize: bool,
) -> tuple[Tensor | None, ...]:
    """The adjoint walk λ ← α Sᵀ λ, with dG collecting (1−α) λ and dS collecting α λ Pᵀ of every step.

    P is recomputed in segments of √L steps from √L checkpoints: 2 √L copies of P are held instead of L.
    """
    dtype = working_dtype(seeds, affinity)
    operator = operator_class(affinity, dtype)
    wide = seeds.to(dtype)
    segment = max(1, math.isqrt(steps))
    checkpoints = [wide]
    for start in range(0, steps, segment):
        checkpoints.append(operator.walk(wide, checkpoints[-1], alpha, min(segment, steps - start)))
    adjoint = grad.to(dtype)
    if normalize:
        total = row_totals(checkpoints[-1])
        result = checkpoints[-1] / total
        # a row that sums to 0 was not divided: its total is the constant 1
        divided = checkpoints[-1].sum(-1, keepdim=True) != 0
        adjoint = (adjoint - torch.where(divided, (adjoint * result).sum(-1, keepdim=True), 0)) / total
    grad_seeds = torch.zeros_like(wide, memory_format=torch.contiguous_format)
    grad_parts: Parts | None = None
    for index in reversed(range(len(checkpoints) - 1)):
        first = index * segment
        states = [checkpoints[index]]
        for _ in range(first + 1, min(first + segment, steps)):
            states.append(operator.walk(wide, states[-1], alpha, 1))
        for state in reversed(states):
            grad_seeds.add_(adjoint, alpha=1 - alpha)
            scaled = alpha * adjoint
            grad_parts = add_parts(grad_parts, operator.gradient(scaled, state))
            adjoint = operator.apply_transpose(scaled)
    grad_seeds.add_(adjoint)
    return grad_seeds, *(grad_parts or (None, None, None, None))


eager = partial(adjoint_walk, AffinityOperator)
cpp = partial(adjoint_walk, CppAffinityOperator)
