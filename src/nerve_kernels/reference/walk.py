"""The definition of stage 3."""

from __future__ import annotations

import torch
from torch import Tensor


def random_walk(seeds: Tensor, affinity: Tensor, *, alpha: float, steps: int, normalize: bool = True) -> Tensor:
    """P₀ = G; P_l = (1−α) G + α S P_{l−1}; after L steps each row is divided by its sum (a zero row stays zero)."""
    seeds, affinity = seeds.double(), affinity.double()
    p = seeds
    for _ in range(steps):
        p = (1 - alpha) * seeds + alpha * (affinity @ p)
    if not normalize:
        return p
    total = p.sum(-1, keepdim=True)
    return p / torch.where(total == 0, 1, total)


def random_walk_limit(seeds: Tensor, affinity: Tensor, *, alpha: float) -> Tensor:
    """P_∞ = (1−α)(I − αS)⁻¹ G."""
    seeds, affinity = seeds.double(), affinity.double()
    identity = torch.eye(affinity.shape[-1], dtype=torch.float64, device=affinity.device)
    return torch.linalg.solve(identity - alpha * affinity, (1 - alpha) * seeds)
