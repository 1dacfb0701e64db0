"""The adjoint of random_walk: λ ← α Sᵀ λ, with the gradients of G and of the parts of S gathered on the way.

A backend registers its own under ``random_walk_backward`` and is used where the caller named it. A named backend that
has none (it runs the forward walk only) leaves the choice open: the best that can run on the device.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nerve_kernels._affinity_arguments import Parts, match_parts
from nerve_kernels._operators import dispatch
from nerve_kernels._operators.library import define, implement
from nerve_kernels._triton.availability import run_lazily, why_unsupported_walk

from .affinity_operator import AffinityOperator, add_parts
from .cpp_affinity_operator import CppAffinityOperator
from .random_walk import AFFINITY_SCHEMA, row_totals, working_dtype

OPERATION = "random_walk_backward"

define(
    f"_random_walk_backward(Tensor grad, Tensor seeds, {AFFINITY_SCHEMA}, float alpha, SymInt steps, bool normalize,"
    " str? backend=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def adjoint_walk(
    operator_class: type[AffinityOperator],
    grad: Tensor,
    seeds: Tensor,
    values: Tensor | None,
    u: Tensor | None,
    v: Tensor | None,
    dense: Tensor | None,
    grid: list[int],
    window: list[int],
    cells: list[int],
    beta: float,
    alpha: float,
    steps: int,
    normalize: bool,
) -> tuple[Tensor, ...]:
    """The adjoint walk λ ← α Sᵀ λ, with dG collecting (1−α) λ and dS collecting α λ Pᵀ of every step.

    P is recomputed in segments of √L steps from √L checkpoints: 2 √L copies of P are held instead of L.
    """
    parts = (values, u, v, dense)
    dtype = working_dtype(seeds, parts)
    operator = operator_class(parts, grid, window, cells, beta, dtype)
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
    return grad_seeds.to(seeds.dtype), *match_parts(grad_parts or (None,) * 4, parts, seeds)


def eager(*arguments: Any) -> tuple[Tensor, ...]:
    """Structured products in plain torch."""
    return adjoint_walk(AffinityOperator, *arguments)


def cpp(*arguments: Any) -> tuple[Tensor, ...]:
    """The compiled walk, forward and with Sᵀ, and the compiled gradient of the window values."""
    return adjoint_walk(CppAffinityOperator, *arguments)


def _run(
    grad: Tensor,
    seeds: Tensor,
    values: Tensor | None,
    u: Tensor | None,
    v: Tensor | None,
    dense: Tensor | None,
    grid: list[int],
    window: list[int],
    cells: list[int],
    beta: float,
    alpha: float,
    steps: int,
    normalize: bool,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    tensors = tuple(item for item in (grad, seeds, values, u, v, dense) if item is not None)
    named = backend if backend is not None and dispatch.is_implemented(OPERATION, backend) else None
    run = dispatch.choose(OPERATION, named, tensors)
    result: tuple[Tensor, ...] = run(
        grad, seeds, values, u, v, dense, grid, window, cells, beta, alpha, steps, normalize
    )
    return result


def _fake(
    grad: Tensor,
    seeds: Tensor,
    values: Tensor | None,
    u: Tensor | None,
    v: Tensor | None,
    dense: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor, ...]:
    parts = (values, u, v, dense)
    grads = (seeds.new_empty(0) if part is None else part.new_empty(part.shape) for part in parts)
    return seeds.new_empty(seeds.shape), *grads


implement("_random_walk_backward", _run, _fake)
dispatch.register(OPERATION, "eager", eager)
dispatch.register(OPERATION, "cpp", cpp, dispatch.why_unsupported_cpp)
dispatch.register(OPERATION, "triton", run_lazily("walk.random_walk_backward"), why_unsupported_walk)
