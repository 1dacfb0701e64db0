"""What the refiners of the field compute, transcribed from their formulas: whole matrices, one line a formula.

Nothing here is fast or saves memory. Each function works in the dtype it is given, float64 included, and is what the
public code of its paper computes; where that differs from the paper, the docstring says so. ``tests/refiners`` and the
page ``docs/replace_your_loop.md`` are held to these.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional

NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


def dilated_samples(image: Tensor, dilations: tuple[int, ...], *, centre: bool) -> Tensor:
    """x at i + d·(dy, dx) for every dilation d and offset, the edge repeated outside: (B, K, samples, H, W)."""
    height, width = image.shape[-2:]
    rows, columns = torch.arange(height), torch.arange(width)
    samples = []
    for d in dilations:
        for dy, dx in [*NEIGHBOURS, (0, 0)] if centre else NEIGHBOURS:
            y, x = (rows + d * dy).clamp(0, height - 1), (columns + d * dx).clamp(0, width - 1)
            samples.append(image[..., y[:, None], x[None, :]])
    return torch.stack(samples, dim=2)


def pamr_weights(image: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """PAMR's affinities of each pixel to its neighbours, (B, 8·D, H, W).

    Araslanov and Roth, CVPR 2020: softmax over the neighbours of −|x_i − x_j| / σ_i², averaged over channels. The
    public module divides by 1e-8 + 0.1·σ_i, not σ_i², with σ_i the unbiased deviation of the 9·D samples (the centre
    once a dilation).
    """
    sigma = dilated_samples(image, dilations, centre=True).std(2, keepdim=True)
    distance = (dilated_samples(image, dilations, centre=False) - image[:, :, None]).abs()
    return (-distance / (1e-8 + 0.1 * sigma)).mean(1).softmax(1)


def pamr(image: Tensor, mask: Tensor, iterations: int, dilations: tuple[int, ...]) -> Tensor:
    """m ← Σ_j α_ij m_j, ``iterations`` times, from the mask at the picture's size."""
    mask = functional.interpolate(mask, size=image.shape[-2:], mode="bilinear", align_corners=True)
    weights = pamr_weights(image, dilations)
    for _ in range(iterations):
        mask = torch.einsum("bcnhw,bnhw->bchw", dilated_samples(mask, dilations, centre=False), weights)
    return mask


def lab(image: Tensor) -> Tensor:
    """sRGB in [0, 1] as CIE L*a*b* under D65, (B, 3, H, W)."""
    linear = torch.where(image > 0.04045, ((image.clamp(min=0) + 0.055) / 1.055) ** 2.4, image / 12.92)
    matrix = [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
    xyz = torch.einsum("rc,bchw->brhw", image.new_tensor(matrix), linear)
    xyz = xyz / image.new_tensor([0.95047, 1.0, 1.08883])[:, None, None]
    f = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856) ** (1 / 3), 7.787 * xyz + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def normalized(graph: sparse.csr_matrix) -> sparse.csr_matrix:
    """D^−½ W D^−½ without self-edges; a token without edges keeps an empty row."""
    graph = graph - sparse.diags(graph.diagonal())
    degree = np.asarray(graph.sum(axis=1)).ravel()
    root = sparse.diags(1 / np.sqrt(np.where(degree == 0, 1, degree)))
    return sparse.csr_matrix(root @ graph @ root)


def lposs_graph(
    features: Tensor, grid: tuple[int, int], k: int, power: float, sigma: float, patch: int
) -> sparse.csr_matrix:
    """LPOSS's graph over patches; Stojnić et al., CVPR 2025.

    The k most similar tokens of each, itself among them (and dropped afterwards), max(0, cos)^γ · exp(−σ · distance)
    with distances in pixels between patch centres, W + Wᵀ (so a mutual edge counts twice), normalised.
    """
    unit = functional.normalize(features, dim=-1)
    similarity, neighbour = (unit @ unit.T).topk(k, dim=-1)
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    place = patch * torch.stack([y.flatten(), x.flatten()], dim=1).to(features)
    distance = (place[:, None] - place[neighbour]).norm(dim=-1)
    weight = similarity.clamp(min=0) ** power * torch.exp(-sigma * distance)
    tokens = len(unit)
    rows = np.arange(tokens).repeat(k)
    one_way = sparse.csr_matrix((weight.flatten().numpy(), (rows, neighbour.flatten().numpy())), (tokens, tokens))
    return normalized(sparse.csr_matrix(one_way + one_way.T))


def lposs_plus_graph(image: Tensor, tau: float, side: int) -> sparse.csr_matrix:
    """LPOSS+'s graph over the pixels of one picture: exp(−‖ΔLab‖ / τ) in a window without its centre, normalised.

    Lab is divided by (100, 128, 128). Pixels outside the picture are no neighbours.
    """
    scaled = (lab(image)[0] / image.new_tensor([100.0, 128.0, 128.0])[:, None, None]).numpy()
    _, height, width = scaled.shape
    index = np.arange(height * width).reshape(height, width)
    rows, columns, values = [], [], []
    reach = side // 2
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            here = (slice(max(0, -dy), height - max(0, dy)), slice(max(0, -dx), width - max(0, dx)))
            there = (slice(max(0, dy), height + min(0, dy)), slice(max(0, dx), width + min(0, dx)))
            if (dy, dx) == (0, 0) or index[here].size == 0:
                continue
            rows.append(index[here].ravel())
            columns.append(index[there].ravel())
            values.append(np.sqrt(((scaled[:, *here] - scaled[:, *there]) ** 2).sum(0)).ravel())
    weight = np.exp(-np.concatenate(values) / tau)
    tokens = height * width
    pairs = (np.concatenate(rows), np.concatenate(columns))
    return normalized(sparse.csr_matrix((weight, pairs), (tokens, tokens)))


def conjugate_gradients(graph: sparse.csr_matrix, y: Tensor, alpha: float, iterations: int, tol: float = 0.0) -> Tensor:
    """(I − αS) x = y for one label after the other, from x = 0, in float64; ends early at ‖r‖ ≤ tol · ‖y‖."""
    system = (sparse.identity(graph.shape[0]) - alpha * graph).tocsr()
    solved = np.zeros(y.shape)
    for label, right in enumerate(y.double().numpy().T):
        x, r = np.zeros_like(right), right.copy()
        p, energy = r.copy(), r @ r
        for _ in range(iterations):
            if np.sqrt(energy) <= tol * np.linalg.norm(right) or energy == 0:
                break
            image = system @ p
            step = energy / (p @ image)
            x, r = x + step * p, r - step * image
            energy, before = r @ r, energy
            p = r + energy / before * p
        solved[:, label] = x
    return torch.from_numpy(solved).to(y.dtype)


def cliper_maps(q: Tensor, k: Tensor, threshold: float) -> Tensor:
    """CLIPer's attention maps (heads, N, N) of one picture; Sun et al., ICCV 2025, fine-grained compensation.

    A / (largest of its column + 1e-5), what is below the threshold 0, / (row sum + 1e-5), as the public code has it.
    """
    maps = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    maps = maps / (maps.amax(-2, keepdim=True) + 1e-5)
    maps = torch.where(maps < threshold, 0, maps)
    return maps / (maps.sum(-1, keepdim=True) + 1e-5)


def cliper(q: Tensor, k: Tensor, seeds: Tensor, threshold: float = 0.1) -> Tensor:
    """(A₁ A₂ ⋯ A_H) G of one picture, the matrices multiplied first, as published."""
    product = torch.eye(q.shape[1], dtype=q.dtype)
    for head in cliper_maps(q, k, threshold):
        product = product @ head
    return product @ seeds


def similarity_weights(features: Tensor, beta: float, gamma: float) -> Tensor:
    """ProxyCLIP's attention (N, N) of one picture: softmax over j of γ (cos − β · mean), below 0 left out; ECCV 2024.

    SC-CLIP (2024) has the same with β = 1 and γ = 3 as half of its last attention.
    """
    unit = functional.normalize(features, dim=-1)
    cosine = unit @ unit.T
    scores = gamma * (cosine - beta * cosine.mean())
    return scores.masked_fill(scores < 0, -torch.inf).softmax(-1)
