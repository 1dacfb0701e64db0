"""Graphs in the registry: one product with a sparse S whose tokens need be no grid."""

from __future__ import annotations

import torch
from benchmarks.operations import sizes
from benchmarks.operations.attention import MEBIBYTE
from benchmarks.operations.problems import Problem
from benchmarks.operations.registry import Call, Operation, Peer, Size, Work
from torch import Tensor

TORCH_CSR, SCIPY_CSR = "torch CSR, int32", "scipy.sparse CSR"


def _entries(size: Size) -> int:
    return size.tokens * size.neighbours


def _state(size: Size) -> int:
    return 4 * size.batch * size.tokens * size.labels


def _ours(problem: Problem, backend: str | None) -> Call:
    seeds, arguments = problem.seeds, problem.graph.operator_arguments()
    return lambda: torch.ops.nerve_kernels.random_walk(seeds, *arguments, 1.0, 1, False, backend)


def _torch_csr(problem: Problem) -> Call:
    """torch's own product, image by image."""
    graph, seeds, tokens = problem.graph, problem.seeds, problem.size.tokens
    parts = graph.row_pointers[0].int(), graph.columns[0], graph.values[0]
    matrix = torch.sparse_csr_tensor(*parts, (tokens, tokens), check_invariants=False)
    return lambda: torch.stack([matrix @ image for image in seeds])


def _scipy_csr(problem: Problem) -> Call:
    """scipy's product, on one thread as scipy does it."""
    from scipy.sparse import csr_matrix

    graph, seeds, tokens = problem.graph, problem.seeds, problem.size.tokens
    parts = graph.values[0].numpy(), graph.columns[0].numpy(), graph.row_pointers[0].int().numpy()
    matrix, images = csr_matrix(parts, shape=(tokens, tokens)), [image.numpy() for image in seeds]
    return lambda: torch.stack([torch.from_numpy(matrix @ image) for image in images])


def _reference(problem: Problem) -> Tensor:
    return problem.graph.to_dense().double() @ problem.seeds.double()


GRAPH_PRODUCT = Operation(
    name="S @ P, S a graph",
    ours=_ours,
    reference=_reference,
    work=lambda size: Work(2 * _state(size) + 8 * _entries(size), 2 * size.batch * _entries(size) * size.labels),
    # eager gathers a block of rows of P, one for each entry
    extra_bytes=lambda size: 32 * MEBIBYTE + 8 * _state(size) + 16 * _entries(size) + 8 * _entries(size) * size.labels,
    baseline=TORCH_CSR,
    peers=(Peer(TORCH_CSR, _torch_csr), Peer(SCIPY_CSR, _scipy_csr, requires=("scipy",), devices=("cpu",))),
    sizes=sizes.GRAPHS,
    quick=sizes.GRAPHS[:1],
    backends=("cpp", "triton", "eager"),
    cold=False,  # within a walk all of it but the entries was touched a moment ago
)

ALL = (GRAPH_PRODUCT,)
