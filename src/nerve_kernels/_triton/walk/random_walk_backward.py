"""random_walk_backward: the adjoint walk λ ← α Sᵀ λ, with dG collecting (1−α) λ and dS collecting α λ Pᵀ of every step.

The window takes the same kernel as the walk, with its values read across: token j finds at offset o what its neighbour
j + o holds at −o. U's part is U (Uᵀ λ) the other way round: Uᵀ λ from cuBLAS, spread over cells or multiplied by V in
that kernel. Gradients of V, of a dense S and of a U as wide as the grid are plain products of rank C, from cuBLAS too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nerve_kernels._arguments import AffinityArguments
from nerve_kernels._triton.launch import Launch, on_device

from .random_walk import WalkOperator
from .sparse_gradients import GraphGradient, StencilGradient, sparse_gradient
from .sparse_step import SparseStep
from .u_gradient import plan_u
from .walk_gradients import plan_window_values
from .walk_step import Step, tiling


class AdjointOperator:
    """α Sᵀ as launches, and the gradients of what S is made of, in float32 and in the batch of each part."""

    def __init__(self, forward: WalkOperator, seeds: Tensor | None = None) -> None:
        self.forward, self.seeds = forward, seeds
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
        self._start_local: Callable[..., None] | None = None

    def step_back(self, adjoint: Tensor, p: Tensor, out: Tensor) -> None:
        """α Sᵀ λ to ``out``, and the gradients of ⟨λ, S P⟩ added, but that of U where it comes by :meth:`collect_u`."""
        forward, share = self.forward, self.forward.global_share
        reduced = adjoint if self.u is None else self.u.transpose(-1, -2) @ adjoint
        if self.sparse_gradient is not None or self.grad_values is not None:
            self._collect_local(adjoint, p)
        if self.grad_dense is not None:
            _add_product(self.grad_dense, adjoint, p.float(), share)
        if self.grad_u is not None and forward.pool_size is None:
            _add_product(self.grad_u, adjoint, p.float(), share)
        if self.grad_v is not None:
            _add_product(self.grad_v, p.float(), reduced, share)
        if self._start is None:
            self._start = self.step.plan(adjoint, reduced, None, out).prepared("p", "pooled", "out")
        self._start(adjoint, reduced, out)

    def collect_u(self, adjoints: Tensor, pools: Tensor) -> None:
        """Add the gradient of U over several steps: λ (steps, B, N, C) and T of P (steps, B, r, C)."""
        if self.grad_u is not None:
            plan_u(adjoints, pools, self.forward.global_share, self.grad_u).run()

    def _collect_local(self, adjoint: Tensor, p: Tensor) -> None:
        """Planned by the first whose P is no seeds: those may have another dtype, and any address."""
        forward = self.forward

        def plan() -> Launch:
            if self.sparse_gradient is not None:
                return self.sparse_gradient.plan(adjoint, p, forward.local_share)
            assert self.grad_values is not None
            return plan_window_values(adjoint, p, forward.grid, forward.window, forward.local_share, self.grad_values)

        if p is self.seeds:
            plan().run()
            return
        if self._start_local is None:
            self._start_local = plan().prepared("adjoint", "p")
        self._start_local(adjoint, p)


def _checkpoints(forward: WalkOperator, seeds: Tensor, counts: list[int]) -> list[Tensor]:
    """The seeds, and P after each of the segments of so many steps."""
    found, scratch = [seeds], forward.empty(2 if max(counts, default=0) > 1 else 0, seeds.shape).unbind()
    for count in counts:
        out = torch.empty(seeds.shape, dtype=torch.float32, device=seeds.device)
        forward.steps(found[-1], seeds, scratch, out, count, False)
        found.append(out)
    return found


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

    P is recomputed in segments of √L steps from √L checkpoints: 2 √L copies of P are held instead of L. What a
    segment no longer needs of P makes room for λ, so that at its end all λ and all T, which are small, are there for
    one product.
    """
    with on_device(seeds):
        return _run(grad, seeds, affinity, alpha, steps, normalize)


def _run(
    grad: Tensor, seeds: Tensor, affinity: AffinityArguments, alpha: float, steps: int, normalize: bool
) -> tuple[Tensor | None, ...]:
    seeds, adjoint = seeds.contiguous(), grad.float()
    forward = WalkOperator(affinity, alpha, seeds)
    backward = AdjointOperator(forward, seeds)
    segment = max(1, math.isqrt(steps))
    counts = [min(segment, steps - start) for start in range(0, steps, segment)]
    checkpoints = _checkpoints(forward, seeds, counts if normalize else counts[:-1])
    if normalize:
        adjoint = _through_division(adjoint, checkpoints.pop().float())
    # of the steps of a segment: P, which makes room for λ once it has been used, and T
    states = forward.empty(segment, seeds.shape)
    pools = None if forward.pool_size is None else forward.empty(segment, forward.pool_size)
    grad_seeds = torch.zeros(seeds.shape, dtype=torch.float32, device=seeds.device)
    shares = torch.full((segment,), 1 - alpha, dtype=torch.float32, device=seeds.device)
    for count in reversed(counts):
        first = checkpoints.pop()
        own_pools = [None] * count if pools is None else pools[:count].unbind()
        forward.through(first, seeds, states[: count - 1].unbind(), own_pools)
        states[count - 1].copy_(adjoint)
        for step in reversed(range(count)):
            p = states[step - 1] if step else first
            adjoint = torch.empty_like(grad_seeds) if p is seeds else p
            backward.step_back(states[step], p, adjoint)
        if pools is not None:
            backward.collect_u(states[:count], pools[:count])
        grad_seeds.view(-1).addmv_(states[:count].flatten(1).t(), shares[:count])
    grad_seeds.add_(adjoint)
    grad_values = backward.sparse_gradient.values if backward.sparse_gradient else backward.grad_values
    return grad_seeds, grad_values, backward.grad_u, backward.grad_v, backward.grad_dense
