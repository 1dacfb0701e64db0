"""attention_map_entropy: 𝓗 = −Σⱼ A log A of explicit maps, in blocks of rows so that no second map is allocated."""

from __future__ import annotations

import torch
from torch import Tensor

from nerve_kernels._operators.library import Operator, accumulation_dtype

from .score_blocks import rows_per_block


def eager(maps: Tensor) -> Tensor:
    """entr(A) summed over keys; 0 · log 0 counts as 0."""
    dtype = accumulation_dtype(maps)
    entropy = maps.new_empty(maps.shape[:3], dtype=dtype)
    step = rows_per_block(maps.shape[3], maps.device)
    for b in range(maps.shape[0]):
        for h in range(maps.shape[1]):
            for start in range(0, maps.shape[2], step):
                rows = slice(start, start + step)
                entropy[b, h, rows] = torch.special.entr(maps[b, h, rows].to(dtype)).sum(-1)
    return entropy


def fake(maps: Tensor) -> Tensor:
    """One number for each row."""
    return maps.new_empty(maps.shape[:3], dtype=accumulation_dtype(maps))


def backward(grad: Tensor, maps: Tensor) -> tuple[Tensor]:
    """dA = −g (log A + 1); where A = 0 the slope is infinite and the gradient is set to 0, as for a masked key."""
    wide = maps.to(grad.dtype)
    slope = torch.where(wide > 0, -(wide.log() + 1), 0)
    return (grad.unsqueeze(-1) * slope,)


attention_map_entropy = Operator(
    "attention_map_entropy(Tensor maps) -> Tensor",
    eager=eager,
    fake=fake,
    backward=backward,
    triton="attention.attention_map_entropy",
)
