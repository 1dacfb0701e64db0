"""best_labels: the most probable label of each pixel, from probabilities on tokens, without probabilities of pixels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from nerve_kernels._operators.library import Operator, accumulation_dtype, define_native

BLOCK_BYTES = 64 * 2**20
"""Probabilities of pixels that the eager form holds at a time."""


def fake(tokens: Tensor, height: int, width: int, *options: Any) -> Tensor:
    """A label for each pixel."""
    return tokens.new_empty((tokens.shape[0], height, width), dtype=torch.int64)


# csrc/cpu/pixels/best_labels.h: from tokens with their labels last, in float32 or float64
best_labels_cpp = define_native(
    "_best_labels_cpp(Tensor tokens, SymInt height, SymInt width, float threshold, int fallback) -> Tensor",
    fake,
)


def eager(planes: Tensor, height: int, width: int, threshold: float, fallback: int) -> Tensor:
    """Blocks of rows: first along the rows of tokens that a block needs, then between two of them, then the best.

    The order and rounding are those of ``torch.nn.functional.interpolate`` on contiguous planes.
    """
    dtype = accumulation_dtype(planes)
    batch, count, token_rows = planes.shape[:3]
    first, second, weight = _rows_between(token_rows, height, dtype, planes.device)
    labels = planes.new_empty((batch, height, width), dtype=torch.int64)
    step = max(1, BLOCK_BYTES // max(1, dtype.itemsize * batch * count * width))
    for start in range(0, height if labels.numel() else 0, step):
        block = slice(start, start + step)
        begin, end = int(first[start]), int(second[block][-1]) + 1
        tokens = planes[:, :, begin:end].to(dtype).contiguous()
        across = functional.interpolate(tokens, size=(end - begin, width), mode="bilinear", align_corners=False)
        share = weight[block, None]
        values = across[:, :, second[block] - begin].mul_(share)
        values.addcmul_(across[:, :, first[block] - begin], 1 - share)
        # what is not a number is never the best
        values.nan_to_num_(-torch.inf, torch.inf, -torch.inf)
        best, label = values.max(dim=1)
        labels[:, block] = torch.where(best < threshold, fallback, label)
    return labels


def _rows_between(tokens: int, pixels: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each row of pixels, the two rows of tokens it lies between and the second one's weight."""
    scale = torch.tensor(tokens, dtype=dtype) / pixels
    position = torch.addcmul(torch.tensor(-0.5, dtype=dtype), torch.arange(pixels, dtype=dtype) + 0.5, scale)
    position = position.clamp(min=0)
    first = position.long().clamp(max=tokens - 1)
    return (
        first.to(device),
        (first + 1).clamp(max=tokens - 1).to(device),
        (position - first).clamp(0, 1).to(device),
    )


def cpp(planes: Tensor, height: int, width: int, threshold: float, fallback: int) -> Tensor:
    """The compiled kernel: labels that cannot win between four tokens are left out for all pixels there."""
    tokens = planes.to(accumulation_dtype(planes)).permute(0, 2, 3, 1)
    result: Tensor = best_labels_cpp(tokens, height, width, threshold, fallback)
    return result


best_labels = Operator(
    "best_labels(Tensor planes, SymInt height, SymInt width, float threshold, int fallback) -> Tensor",
    eager=eager,
    fake=fake,
    cpp=cpp,
    triton="pixels.best_labels",
)
