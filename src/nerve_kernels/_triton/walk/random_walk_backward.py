"""random_walk_backward: the adjoint walk λ ← α Sᵀ λ, with dG collecting (1−α) λ and dS collecting α λ Pᵀ of every step.

The window takes the same kernel as the walk, with its values read across: token j finds at offset o what its neighbour
j + o holds at −o. U's part is U (Uᵀ λ) the other way round: Uᵀ λ from cuBLAS, spread over cells or multiplied by V in
that kernel. Gradients of U, V and a dense S are plain products of rank C, from cuBLAS as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nerve_kernels._arguments import AffinityArguments
from nerve_kernels._triton.launch import on_device

from .random_walk import WalkOperator
from .sparse_gradients import GraphGradient, StencilGradient, sparse_gradient
from .sparse_step import SparseStep
from .walk_gradients import plan_window_values
from .walk_step import Step, tiling


class AdjointOperator:
    """α Sᵀ as launches, and the gradients of what S is made of, in float32 and in the batch of each part."""

    def __init__(self, forward: WalkOperator) -> None:
        self.forward = forward
        values, u, v, dense = forward.values, forward.u, forward.v, forward.dense
        self.u = None if u is None else u.float()  # cuBLAS multiplies equal types only
        right = None if dense is None else dense.transpose(-1, -2)
        step = Step(
            forward.grid,
            forward.window,
            forward.cells,
            tiling(forward.grid, None, forward.batch * forward.labels),
            (1.0 if forward.sparse else 0.0, forward.global_share, forward.local_share),
            u=v if right is None else right,
            values=values,
            spread=forward.has_cells,
            transposed=True,
        )
        self.step: Step | SparseStep = step
        self.sparse_gradient: StencilGradient | GraphGradient | None = None
        if forward.sparse:
            local, with_global = forward.sparse.transpose(), None if u is None else step
            self.step = SparseStep(local, 0.0, forward.local_share, with_global)
            self.sparse_gradient = sparse_gradient(forward.sparse)
        self.grad_values, self.grad_u, self.grad_v, self.grad_dense = (
            None if part is None else torch.zeros(part.shape, dtype=torch.float32, device=part.device)
            for part in (values, u, v, dense)
        )
        self._start: Callable[..., None] | None = None

    def collect(self, adjoint: Tensor, p: Tensor, pooled: Tensor | None) -> None:
        """Add the gradients of one step, ⟨λ, S P⟩; ``pooled`` is T of P."""
        forward, share = self.forward, self.forward.local_share
        if self.sparse_gradient is not None:
            self.sparse_gradient.plan(adjoint, p, share).run()
        if self.grad_values is not None:
            plan_window_values(adjoint, p, forward.grid, forward.window, share, self.grad_values).run()
        if self.grad_dense is not None:
            _add_product(self.grad_dense, adjoint, p.float(), forward.global_share)
        if self.grad_u is not None and pooled is not None:
            _add_product(self.grad_u, adjoint, pooled.float(), forward.global_share)
        if self.grad_v is not None and self.u is not None:
            _add_product(self.grad_v, p.float(), self.u.transpose(-1, -2) @ adjoint, forward.global_share)

    def apply(self, adjoint: Tensor) -> Tensor:
        """α Sᵀ λ."""
        pooled = adjoint if self.u is None else self.u.transpose(-1, -2) @ adjoint
        out = torch.empty_like(adjoint)
        if self._start is None:
            self._start = self.step.plan(adjoint, pooled, None, out).prepared("p", "pooled", "out")
        self._start(adjoint, pooled, out)
        return out


def _add_product(total: Tensor, left: Tensor, right: Tensor, share: float) -> None:
    """``total`` += share · left rightᵀ; summed over the batch where one part served all of it."""
    if total.shape[0] == left.shape[0]:
        total.baddbmm_(left, right.transpose(-1, -2), alpha=share)
    else:
        left, right = (item.transpose(0, 1).flatten(1) for item in (left, right))
        total[0].addmm_(left, right.transpose(0, 1), alpha=share)


def _through_division(grad: Tensor, p: Tensor) -> Tensor:
    """The gradient before the rows of P were divided by their sums; a row that sums to 0 was not divided."""
    mass = p.sum(-1, keepdim=True)
    divisor = torch.where(mass == 0, 1, mass)
    pull = (grad * (p / divisor)).sum(-1, keepdim=True)
    return (grad - torch.where(mass == 0, 0, pull)) / divisor


def run(
    grad: Tensor, seeds: Tensor, affinity: AffinityArguments, alpha: float, steps: int, normalize: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of seeds, values, u, v and dense; None for a part that is not there.

    P is recomputed in segments of √L steps from √L checkpoints: 2 √L copies of P are held instead of L.
    """
    with on_device(seeds):
        return _run(grad, seeds, affinity, alpha, steps, normalize)


def _run(
    grad: Tensor, seeds: Tensor, affinity: AffinityArguments, alpha: float, steps: int, normalize: bool
) -> tuple[Tensor | None, ...]:
    # copies, which lie at multiples of 16 bytes: launches are planned once for all steps
    seeds, adjoint = seeds.contiguous(), grad.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    forward = WalkOperator(affinity, alpha, seeds)
    backward = AdjointOperator(forward)

    def following(p: Tensor) -> Tensor:
        return forward.following(p, seeds)

    segment = max(1, math.isqrt(steps))
    checkpoints = [seeds]
    for start in range(0, steps, segment):
        p = checkpoints[-1]
        for _ in range(min(segment, steps - start)):
            p = following(p)
        checkpoints.append(p)
    if normalize:
        adjoint = _through_division(adjoint, checkpoints[-1].float())
    grad_seeds = torch.zeros_like(adjoint)
    for index in reversed(range(len(checkpoints) - 1)):
        states = [checkpoints[index]]
        for _ in range(1, min(segment, steps - index * segment)):
            states.append(following(states[-1]))
        for state in reversed(states):
            grad_seeds.add_(adjoint, alpha=1 - alpha)
            backward.collect(adjoint, state, forward.pool(state))
            adjoint = backward.apply(adjoint)
    grad_seeds.add_(adjoint)
    grad_values = backward.sparse_gradient.values if backward.sparse_gradient else backward.grad_values
    return grad_seeds, grad_values, backward.grad_u, backward.grad_v, backward.grad_dense
