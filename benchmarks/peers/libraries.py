"""Libraries that walk on graphs. Each is imported when it is prepared, so that a missing one can be named."""

from __future__ import annotations

import numpy as np
import torch
from benchmarks.operations.problems import ALPHA, BETA, Problem
from benchmarks.operations.registry import Call


def _scipy_csr(problem: Problem):  # type: ignore[no-untyped-def]
    """The window weights as a scipy matrix, images along the diagonal."""
    from scipy.sparse import csr_matrix

    sparse = problem.csr()
    parts = (sparse.values(), sparse.col_indices().int(), sparse.crow_indices().int())
    return csr_matrix(tuple(part.numpy() for part in parts), shape=tuple(sparse.shape))


def scipy_product(problem: Problem) -> Call:
    """One product of scipy.sparse, on one thread as scipy does it."""
    matrix, flat, shape = _scipy_csr(problem), problem.seeds.flatten(0, 1).numpy(), problem.seeds.shape
    return lambda: torch.from_numpy(matrix @ flat).view(shape)


def scipy_walk(problem: Problem) -> Call:
    """A loop over scipy's sparse product and numpy's dense one."""
    size, matrix, u = problem.size, _scipy_csr(problem), problem.global_affinity.u.numpy()
    seeds, (height, width), cells = problem.seeds.numpy(), size.grid, size.cells
    blocks = (size.batch, cells, height // cells, cells, width // cells, size.labels)

    def call() -> torch.Tensor:
        p = seeds
        for _ in range(size.steps):
            global_part = u @ p.reshape(blocks).mean((2, 4)).reshape(size.batch, cells**2, size.labels)
            local_part = (matrix @ p.reshape(-1, size.labels)).reshape(p.shape)
            p = np.float32(1 - ALPHA) * seeds + np.float32(ALPHA) * (BETA * global_part + (1 - BETA) * local_part)
        return torch.from_numpy(p)

    return call


def scipy_solve(problem: Problem) -> Call:
    """(I − αS)⁻¹ of the local walk by a sparse LU factorisation in float64."""
    from scipy.sparse import identity
    from scipy.sparse.linalg import splu

    seeds = problem.seeds
    flat = seeds.flatten(0, 1).double().numpy()
    matrix = identity(flat.shape[0], format="csc") - ALPHA * _scipy_csr(problem).astype(np.float64).tocsc()
    return lambda: torch.from_numpy(splu(matrix).solve((1 - ALPHA) * flat)).to(seeds.dtype).view_as(seeds)


def pyg_appnp(problem: Problem) -> Call:
    """PyG's APPNP on the window's edges: its ``alpha`` is the teleport, 1 − α."""
    from torch_geometric.nn import APPNP

    coordinates = problem.csr().to_sparse_coo().coalesce()
    target, source = coordinates.indices()
    edges, weights = torch.stack([source, target]), coordinates.values()
    layer = APPNP(K=problem.size.steps, alpha=1 - ALPHA, add_self_loops=False)
    layer.normalize = False  # the rows of S sum to 1 as they are
    layer = layer.to(problem.device).eval()
    seeds = problem.seeds
    flat = seeds.flatten(0, 1)

    def call() -> torch.Tensor:
        with torch.no_grad():
            return layer(flat, edges, weights).view_as(seeds)

    return call


def networkx_pagerank(problem: Problem) -> Call:
    """PageRank with restart, one call for each label: the forward chain (it walks Sᵀ), normalised over tokens."""
    import networkx

    graph = networkx.from_scipy_sparse_array(_scipy_csr(problem), create_using=networkx.DiGraph)
    seeds = problem.seeds[0]
    personal = [dict(enumerate(column)) for column in seeds.T.tolist()]

    def call() -> torch.Tensor:
        columns = [networkx.pagerank(graph, alpha=ALPHA, personalization=labels) for labels in personal]
        return torch.tensor([[column[token] for column in columns] for token in range(seeds.shape[0])])

    return call


def skimage_random_walker(problem: Problem) -> Call:
    """scikit-image's random walker: hard seeds, edges from colours, a linear system for each label."""
    from skimage.segmentation import random_walker

    size = problem.size
    image = problem.image[0].permute(1, 2, 0).double().numpy()
    # every label's surest tokens are its seeds, all others are unknown
    surest = problem.seeds[0].topk(max(1, size.tokens // (8 * size.labels)), dim=0).indices
    labels = np.zeros(size.tokens, dtype=np.int32)
    for label in range(size.labels):
        labels[surest[:, label].numpy()] = label + 1
    labels = labels.reshape(size.grid)

    def call() -> torch.Tensor:
        full = random_walker(image, labels, beta=10, mode="cg_j", channel_axis=-1, return_full_prob=True, tol=1e-6)
        return torch.from_numpy(np.asarray(full))

    return call
