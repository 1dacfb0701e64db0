"""Launches of the walk and of its gradient at the sizes users have, on tensors without storage: for compiling only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from benchmarks.peers.torch_walk import float32_products
from torch import Tensor
from verification.attention_launches import PRECISIONS

from nerve_kernels._arguments import AffinityArguments
from nerve_kernels._triton.launch import Launch
from nerve_kernels._triton.walk.random_walk import WalkOperator, packed_operator
from nerve_kernels._triton.walk.random_walk_backward import AdjointOperator
from nerve_kernels._triton.walk.u_gradient import plan_u
from nerve_kernels._triton.walk.walk_gradients import plan_window_values
from nerve_kernels._triton.walk.walk_pooling import plan_average, plan_division
from nerve_kernels._triton.walk.walk_step import MAX_LABELS

BETA, ALPHA, STEPS = 0.5, 0.8, 20


@dataclass(frozen=True)
class WalkSize:
    """One walk: its affinity's kind and sizes."""

    kind: str = "mixed"
    grid: tuple[int, int] = (64, 64)
    window: tuple[int, int] = (7, 7)
    cells: tuple[int, int] = (16, 16)
    labels: int = 21

    def seeds(self) -> Tensor:
        """(1, N, C) float32."""
        return _empty(1, math.prod(self.grid), self.labels)

    def affinity(self, dtype: torch.dtype) -> AffinityArguments:
        """S with weights of ``dtype``."""
        tokens = math.prod(self.grid)
        values = u = dense = None
        if self.kind in ("mixed", "local"):
            values = _empty(1, tokens, math.prod(self.window), dtype=dtype)
        if self.kind in ("mixed", "cells"):
            u = _empty(1, tokens, math.prod(self.cells), dtype=dtype)
        if self.kind == "dense":
            dense = _empty(1, tokens, tokens, dtype=dtype)
        grid, window, cells = list(self.grid), list(self.window), list(self.cells)
        return AffinityArguments(values, u, None, dense, grid=grid, window=window, cells=cells, beta=BETA)

    def operator(self, dtype: torch.dtype) -> WalkOperator:
        """S as it is."""
        return WalkOperator(self.affinity(dtype), ALPHA, self.seeds())


SIZES = {
    "": WalkSize(),
    " @ 171 labels": WalkSize(labels=171),
    " @ 128 × 128, 150 labels": WalkSize(grid=(128, 128), cells=(32, 32), labels=150),
    " @ 256 × 256": WalkSize(grid=(256, 256), labels=19),
    " @ 37 × 37": WalkSize(grid=(37, 37), window=(15, 15), labels=33),
    " @ window": WalkSize(kind="local"),
    " @ cells": WalkSize(kind="cells"),
    " @ dense": WalkSize(kind="dense"),
}


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def step_launch(size: WalkSize, operator: WalkOperator, *, last: bool = False) -> Launch:
    """A step, as the walk plans it; its last one divides the rows."""
    seeds = size.seeds()
    p, pooled, pooled_out = torch.empty_like(seeds), None, None
    if operator.has_cells:
        pooled = _empty(1, math.prod(size.cells), size.labels)
        pooled_out = torch.empty_like(pooled) if operator.pools_itself and not last else None
    elif operator.dense is not None:
        pooled = p
    return operator.step.plan(p, pooled, seeds, torch.empty_like(p), pooled_out, normalize=last)


def packed_launches(size: WalkSize, dtype: torch.dtype) -> dict[str, Launch]:
    """Where S is packed: "pack", and the walk's "first" launch, "step" and "last" step."""
    seeds = size.seeds()
    operator = packed_operator(seeds, size.affinity(dtype), ALPHA, STEPS)
    if operator is None:
        return {}
    step = operator.step
    state = _empty(*step.state_size(), dtype=step.terms.state)
    restart, divides = _empty(*step.restart_size()), size.labels <= MAX_LABELS
    return {
        "pack": operator.packing,
        "first": step.plan(seeds, restart, state, seeds, part="first"),
        "step": step.plan(state, restart, torch.empty_like(state), seeds),
        "last": step.plan(state, restart, state, torch.empty_like(seeds), part="last", normalize=divides),
    }


def adjoint_launch(size: WalkSize, operator: WalkOperator) -> Launch:
    """A step of the adjoint walk."""
    adjoint = size.seeds()
    pooled = _empty(1, math.prod(size.cells), size.labels) if operator.has_cells else adjoint
    return AdjointOperator(operator).step.plan(adjoint, pooled, None, torch.empty_like(adjoint))


def walk_launches(precision: str) -> dict[str, list[Launch]]:
    """Launches by operation; ``@`` marks other sizes than the first."""
    dtype, products = PRECISIONS[precision]
    found: dict[str, list[Launch]] = {}
    with float32_products(products):
        for mark, size in SIZES.items():
            operator = size.operator(dtype)
            found[f"random_walk{mark}"] = [step_launch(size, operator)]
            if size.labels <= MAX_LABELS:
                found[f"random_walk{mark}"].append(step_launch(size, operator, last=True))
            packed = packed_launches(size, dtype)
            if packed:
                found[f"random_walk, packed{mark}"] = list(packed.values())
            if size.kind != "cells":  # whose adjoint multiplies nothing
                found[f"random_walk_backward{mark}"] = [adjoint_launch(size, operator)]
            if dtype == torch.float32 and operator.values is not None:
                seeds, on_grid = size.seeds(), (list(size.grid), list(size.window))
                gradient = plan_window_values(seeds, seeds, *on_grid, 1.0, torch.empty_like(operator.values))
                found[f"random_walk_backward{mark}"].append(gradient)
                if operator.pool_size is not None:
                    several = (operator.empty(4, rows) for rows in (seeds.shape, operator.pool_size))
                    found[f"random_walk_backward{mark}"].append(plan_u(*several, 1.0, torch.empty_like(operator.u)))
        if dtype == torch.float32:
            for labels in (21, 171):
                seeds, pooled = _empty(1, 4096, labels), _empty(1, 256, labels)
                average = plan_average(seeds, [64, 64], [16, 16], pooled)
                found[f"random_walk @ around, {labels} labels"] = [average, plan_division(seeds, seeds)]
    return found
