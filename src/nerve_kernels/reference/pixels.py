"""The definition of what happens to pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from .grids import query_resampling


def best_labels(planes: Tensor, *, size: tuple[int, int], threshold: float, fallback: int) -> Tensor:
    """argmax_c of planes (B, C, h, w) brought to (H, W) bilinearly, (B, H, W); fallback where the best < threshold."""
    resampling = query_resampling((planes.shape[2], planes.shape[3]), size).to(planes.device)
    values = planes.double().flatten(2) @ resampling.transpose(0, 1)
    best, label = values.max(1)
    return torch.where(best < threshold, fallback, label).unflatten(1, size)
