"""How other training-free refiners spread labels: their algorithms, written by us from the papers, not their code.

They answer the same question by other means, so they are compared for time and memory, never for equality. All are
given what ours is given: one layer's queries and keys, CLIP's seeds, or the image.
"""

from __future__ import annotations

import torch
from benchmarks.operations.problems import Problem
from benchmarks.operations.registry import Call
from benchmarks.peers.torch_attention import attention_maps
from torch import Tensor
from torch.nn import functional

LPOSS_ALPHA, LPOSS_NEIGHBOURS, LPOSS_POWER, LPOSS_SIGMA = 0.95, 400, 3.0, 0.01
CONJUGATE_GRADIENT_TOLERANCE, CONJUGATE_GRADIENT_STEPS = 1e-6, 1000
PAMR_DILATIONS, PAMR_ITERATIONS = (1, 2, 4, 8, 12, 24), 10


def neighbour_graph(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """D^(−1/2) W D^(−1/2) as CSR: W = A + Aᵀ, A the k most similar tokens, damped by distance on the grid."""
    tokens = features.shape[0]
    unit = functional.normalize(features, dim=-1)
    similarity, neighbour = (unit @ unit.T).topk(min(LPOSS_NEIGHBOURS, tokens), dim=-1)
    y, x = torch.arange(grid[0]) / grid[0], torch.arange(grid[1]) / grid[1]
    place = torch.cartesian_prod(y, x).to(features)
    distance = (place[:, None] - place[neighbour]).square().sum(-1)
    weight = similarity.clamp(min=0) ** LPOSS_POWER * torch.exp(-distance / LPOSS_SIGMA)
    weight = weight.masked_fill(neighbour == torch.arange(tokens, device=features.device)[:, None], 0)
    rows = torch.arange(tokens, device=features.device).repeat_interleave(neighbour.shape[1])
    one_way = torch.stack([rows, neighbour.flatten()])
    places = torch.cat([one_way, one_way.flip(0)], dim=1)
    graph = torch.sparse_coo_tensor(places, weight.flatten().repeat(2), (tokens, tokens)).coalesce()
    rows, columns = graph.indices()
    degree = torch.zeros(tokens, device=features.device).index_add_(0, rows, graph.values())
    root = degree.clamp(min=1e-12).rsqrt()
    values = graph.values() * root[rows] * root[columns]
    return torch.sparse_coo_tensor(graph.indices(), values, graph.shape, is_coalesced=True).to_sparse_csr()


def conjugate_gradient(graph: Tensor, right: Tensor) -> Tensor:
    """Solve (I − αS) X = B for all labels together."""
    x, residual = torch.zeros_like(right), right.clone()
    direction, energy = residual.clone(), residual.square().sum(0)
    target = CONJUGATE_GRADIENT_TOLERANCE**2 * energy.clamp(min=1e-30)
    for _ in range(CONJUGATE_GRADIENT_STEPS):
        if bool((energy <= target).all()):
            break
        image = direction - LPOSS_ALPHA * (graph @ direction)
        step = energy / (direction * image).sum(0).clamp(min=1e-30)
        x, residual = x + step * direction, residual - step * image
        new_energy = residual.square().sum(0)
        direction = residual + new_energy / energy.clamp(min=1e-30) * direction
        energy = new_energy
    return x


def lposs_style(problem: Problem) -> Call:
    """Label propagation over patches after LPOSS (Stojnić et al., CVPR 2025): kNN graph, then conjugate gradient."""
    k, seeds, size = problem.k, problem.seeds, problem.size

    def call() -> Tensor:
        features = k[0].transpose(0, 1).reshape(size.tokens, -1)  # a token's keys of all heads stand for its features
        return conjugate_gradient(neighbour_graph(features, size.grid), seeds[0])[None]

    return call


def cliper_as_printed(problem: Problem) -> Call:
    """CLIPer's chain (Sun et al., ICCV 2025) in the order of its formula: (A₁ A₂ ⋯ A_h) G."""
    q, k, seeds = problem.q, problem.k, problem.seeds

    def call() -> Tensor:
        maps = attention_maps(q, k)
        product = maps[:, 0]
        for head in range(1, maps.shape[1]):
            product = product @ maps[:, head]
        return product @ seeds

    return call


def cliper_reassociated(problem: Problem) -> Call:
    """The same chain from the right, A₁ (A₂ (⋯ (A_h G))): N²C instead of N³ for each head."""
    q, k, seeds = problem.q, problem.k, problem.seeds

    def call() -> Tensor:
        maps, p = attention_maps(q, k), seeds
        for head in reversed(range(maps.shape[1])):
            p = maps[:, head] @ p
        return p

    return call


def _neighbours(image: Tensor) -> Tensor:
    """Eight neighbours at every dilation, (B, channels, 8 · dilations, H, W)."""
    found = []
    height, width = image.shape[-2:]
    for reach in PAMR_DILATIONS:
        padded = functional.pad(image, (reach,) * 4, mode="replicate")
        found += [
            padded[..., reach + dy : reach + dy + height, reach + dx : reach + dx + width]
            for dy in (-reach, 0, reach)
            for dx in (-reach, 0, reach)
            if dy or dx
        ]
    return torch.stack(found, dim=2)


def pamr(problem: Problem) -> Call:
    """Pixel-adaptive mask refinement (Araslanov & Roth, CVPR 2020) on the token grid."""
    size, image = problem.size, problem.image
    start = problem.seeds.transpose(1, 2).reshape(size.batch, size.labels, *size.grid)

    def call() -> Tensor:
        around = _neighbours(image)
        spread = torch.cat([around, image[:, :, None]], dim=2).std(2, keepdim=True)
        affinity = (-(around - image[:, :, None]).abs() / (1e-8 + 0.1 * spread)).mean(1).softmax(1)
        p = start
        for _ in range(PAMR_ITERATIONS):
            p = torch.einsum("bknhw,bnhw->bkhw", _neighbours(p), affinity)
        return p.flatten(2).transpose(1, 2)

    return call
