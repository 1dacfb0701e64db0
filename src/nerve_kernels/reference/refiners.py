"""The definition of refiners that are no walk."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .attention import attention


def cliper(q: Tensor, k: Tensor, seeds: Tensor, *, threshold: float = 0.1, scale: float | None = None) -> Tensor:
    """A₁ A₂ ⋯ A_H G, each A over the largest of its column, without what is below the threshold, over its row's sum."""
    maps = attention(q, k, scale=scale)
    maps = maps / (maps.amax(-2, keepdim=True) + 1e-5)
    maps = maps.masked_fill(maps < threshold, 0)
    maps = maps / (maps.sum(-1, keepdim=True) + 1e-5)
    refined = seeds.double()
    for head in reversed(range(maps.shape[1])):
        refined = maps[:, head] @ refined
    return refined


def similarity(features: Tensor, seeds: Tensor, *, beta: float, gamma: float) -> Tensor:
    """softmax_j(γ (cos − β · mean)) G without entries below 0; a row without entries keeps its seed."""
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    cosine = unit @ unit.transpose(-1, -2)
    scores = gamma * (cosine - beta * cosine.mean((-2, -1), keepdim=True))
    weights = scores.masked_fill(scores < 0, -math.inf).softmax(-1)
    return torch.where((scores < 0).all(-1, keepdim=True), seeds.double(), weights.nan_to_num() @ seeds.double())
