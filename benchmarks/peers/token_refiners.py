"""What the refiners of the field run today, by torch and scipy, from their formulas: the same numbers as ours."""

from __future__ import annotations

import numpy as np
import torch
from benchmarks.operations.problems import Problem
from benchmarks.operations.registry import Call, Size
from benchmarks.peers.torch_attention import attention_maps
from torch import Tensor
from torch.nn import functional

CLIPER_THRESHOLD, CLIPER_EPSILON = 0.1, 1e-5
LPOSS_ALPHA, LPOSS_NEIGHBOURS, LPOSS_POWER, LPOSS_SIGMA, LPOSS_PATCH, LPOSS_STEPS = 0.95, 400, 3.0, 0.01, 16, 10


def sharpened_maps(q: Tensor, k: Tensor) -> Tensor:
    """CLIPer's maps (B, heads, N, N): over the largest of a column, without what is small, over the row's sum."""
    maps = attention_maps(q, k)
    maps = maps / (maps.amax(-2, keepdim=True) + CLIPER_EPSILON)
    maps = torch.where(maps < CLIPER_THRESHOLD, 0, maps)
    return maps / (maps.sum(-1, keepdim=True) + CLIPER_EPSILON)


def cliper_as_published(problem: Problem) -> Call:
    """(A₁ A₂ ⋯ A_H) G."""

    def call() -> Tensor:
        maps = sharpened_maps(problem.q, problem.k)
        product = maps[:, 0]
        for head in range(1, maps.shape[1]):
            product = product @ maps[:, head]
        return product @ problem.seeds

    return call


def cliper_reassociated(problem: Problem) -> Call:
    """A₁ (A₂ (⋯ (A_H G)))."""

    def call() -> Tensor:
        maps, p = sharpened_maps(problem.q, problem.k), problem.seeds
        for head in reversed(range(maps.shape[1])):
            p = maps[:, head] @ p
        return p

    return call


def features_of(problem: Problem) -> Tensor:
    """(B, N, D): a token's keys of all heads stand for its features, shifted so that most resemble one another."""
    return functional.normalize(problem.k.transpose(1, 2).flatten(2) + 0.5, dim=-1)


def positions_of(size: Size) -> Tensor:
    """(N, 2): where patches are, in pixels."""
    rows, columns = (LPOSS_PATCH * torch.arange(float(side)) for side in size.grid)
    return torch.cartesian_prod(rows, columns)


def neighbours_of(size: Size) -> int:
    """How many neighbours a patch has: no more than there are patches."""
    return min(LPOSS_NEIGHBOURS, size.tokens)


def lposs_by_scipy(problem: Problem) -> Call:
    """The graph by torch's topk and scipy's sparse matrices, then conjugate gradients for one label after the other."""
    from scipy import sparse
    from scipy.sparse import linalg

    size, neighbours = problem.size, neighbours_of(problem.size)
    features, place = features_of(problem), positions_of(problem.size)

    def graph(unit: Tensor) -> sparse.csr_matrix:
        similarity, neighbour = (unit @ unit.T).topk(neighbours, dim=-1)
        distance = (place[:, None] - place[neighbour]).norm(dim=-1)
        weight = similarity.clamp(min=0) ** LPOSS_POWER * torch.exp(-LPOSS_SIGMA * distance)
        rows = np.arange(size.tokens).repeat(neighbours)
        pairs = (weight.flatten().numpy(), (rows, neighbour.flatten().numpy()))
        one_way = sparse.csr_matrix(pairs, (size.tokens, size.tokens))
        both = (one_way + one_way.T).tocsr()
        both = both - sparse.diags(both.diagonal(), dtype=both.dtype)
        degree = np.asarray(both.sum(axis=1)).ravel()
        root = sparse.diags(1 / np.sqrt(np.where(degree == 0, 1, degree)), dtype=both.dtype)
        return (root @ both @ root).tocsr()

    def call() -> Tensor:
        solved = []
        for unit, seeds in zip(features, problem.seeds, strict=True):
            matrix = graph(unit)
            system = (
                sparse.identity(size.tokens, dtype=matrix.dtype) - matrix.dtype.type(LPOSS_ALPHA) * matrix
            ).tocsr()
            labels = seeds.numpy().T
            columns = [linalg.cg(system, label, rtol=0.0, maxiter=LPOSS_STEPS)[0] for label in labels]
            solved.append(torch.from_numpy(np.stack(columns, axis=1)))
        return torch.stack(solved)

    return call


def cut_gradients(graph: Tensor, y: Tensor) -> Tensor:
    """The definition of what is compared: so many steps of conjugate gradients from 0 on a dense S, in float64."""
    x, residual = torch.zeros_like(y), y
    direction, energy = y, y.square().sum(-2, keepdim=True)
    for _ in range(LPOSS_STEPS):
        image = direction - LPOSS_ALPHA * (graph @ direction)
        step = energy / (direction * image).sum(-2, keepdim=True)
        x, residual = x + step * direction, residual - step * image
        energy, before = residual.square().sum(-2, keepdim=True), energy
        direction = residual + energy / before * direction
    return x
