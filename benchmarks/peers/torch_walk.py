"""The walk, its product and its limit as one writes them in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from benchmarks.operations.problems import ALPHA, BETA, Problem
from benchmarks.operations.registry import Call, Size
from torch import Tensor

from nerve_kernels.grids import cell_of_token, cell_sizes


def dense_loop(seeds: Tensor, affinity: Tensor, steps: int) -> Tensor:
    """The loop of every tutorial: P ← (1−α) G + α S P."""
    p = seeds
    for _ in range(steps):
        p = (1 - ALPHA) * seeds + ALPHA * (affinity @ p)
    return p


def dense_walk(problem: Problem) -> Call:
    """S as an N × N matrix."""
    seeds, affinity, steps = problem.seeds, problem.dense.to(problem.dtype), problem.size.steps
    return lambda: dense_loop(seeds, affinity, steps)


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """How torch takes products of float32 on a GPU: "ieee" or "tf32"."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def baddbmm_walk(precision: str) -> Callable[[Problem], Call]:
    """S as an N × N matrix in one call a step, without a temporary: the fastest loop over it that torch has.

    ``precision`` is "float32", "tf32" or "bfloat16".
    """

    def prepare(problem: Problem) -> Call:
        dtype = torch.bfloat16 if precision == "bfloat16" else problem.dtype
        affinity, seeds, steps = problem.dense.to(dtype), problem.seeds.to(dtype), problem.size.steps
        restart, buffers = (1 - ALPHA) * seeds, (torch.empty_like(seeds), torch.empty_like(seeds))

        def call() -> Tensor:
            p = seeds
            with float32_products("tf32" if precision == "tf32" else "ieee"):
                for step in range(steps):
                    p = torch.baddbmm(restart, affinity, p, alpha=ALPHA, out=buffers[step % 2])
            return p

        return call

    return prepare


def average_cells(p: Tensor, size: Size) -> Tensor:
    """Means of (B, N, C) over the cells, (B, M, C)."""
    (height, width), cells = size.grid, size.cells
    if height % cells == 0 and width % cells == 0:
        return p.view(p.shape[0], cells, height // cells, cells, width // cells, -1).mean((2, 4)).flatten(1, 2)
    cell = cell_of_token(size.grid, (cells, cells), p.device)
    counts = (cell_sizes(height, cells, p.device)[:, None] * cell_sizes(width, cells, p.device)).view(-1, 1)
    return p.new_zeros(p.shape[0], cells**2, p.shape[2]).index_add_(1, cell, p) / counts


def composite_loop(seeds: Tensor, u: Tensor, sparse: Tensor, size: Size) -> Tensor:
    """The best structured loop in plain torch: sparse local part, pooled global part."""
    restart, p = (1 - ALPHA) * seeds, seeds
    for _ in range(size.steps):
        global_part = u @ average_cells(p, size)
        local_part = (sparse @ p.reshape(-1, p.shape[-1])).view_as(p)
        p = restart + ALPHA * (BETA * global_part + (1 - BETA) * local_part)
    return p


def composite_walk(problem: Problem) -> Call:
    """CSR window and pooled U."""
    seeds, u, sparse, size = problem.seeds, problem.global_affinity.u, problem.csr(), problem.size
    return lambda: composite_loop(seeds, u, sparse, size)


def sparse_walk(problem: Problem) -> Call:
    """A loop over the CSR product: the local part alone."""
    seeds, sparse, steps = problem.seeds, problem.csr(), problem.size.steps
    flat = seeds.reshape(-1, seeds.shape[-1])
    return lambda: dense_loop(flat, sparse, steps).view_as(seeds)


def sparse_product(problem: Problem) -> Call:
    """One CSR product."""
    seeds, sparse = problem.seeds, problem.csr()
    flat = seeds.reshape(-1, seeds.shape[-1])
    return lambda: (sparse @ flat).view_as(seeds)


def unfolded_product(problem: Problem) -> Call:
    """torch's unfold of every window, weighted and summed."""
    size, values = problem.size, problem.local.values
    image = problem.seeds.transpose(1, 2).reshape(size.batch, size.labels, *size.grid)

    def call() -> Tensor:
        columns = torch.nn.functional.unfold(image, size.window, padding=size.window // 2)
        columns = columns.view(size.batch, size.labels, size.window**2, size.tokens)
        return torch.einsum("bckn,bnk->bnc", columns, values)

    return call


def linear_solve(problem: Problem) -> Call:
    """(I − αS)⁻¹ by factorisation of the dense float64 matrix."""
    seeds, affinity = problem.seeds, problem.dense
    identity = torch.eye(affinity.shape[-1], dtype=affinity.dtype, device=affinity.device)
    return lambda: torch.linalg.solve(identity - ALPHA * affinity, (1 - ALPHA) * seeds.double()).to(seeds.dtype)


def composite_gradient(problem: Problem) -> Call:
    """Forward and backward of the dense-free loop by autograd; gradients of G, window values and U."""
    size = problem.size
    seeds, u = (tensor.clone().requires_grad_() for tensor in (problem.seeds, problem.global_affinity.u))
    sparse = problem.csr()
    values = sparse.values().clone().requires_grad_()
    rows, columns = sparse.crow_indices(), sparse.col_indices()

    def call() -> Tensor:
        matrix = torch.sparse_csr_tensor(rows, columns, values, sparse.shape, check_invariants=False)
        result = composite_loop(seeds, u, matrix, size)
        gradients = torch.autograd.grad(result.square().sum(), (seeds, u, values))
        return gradients[0]

    return call
