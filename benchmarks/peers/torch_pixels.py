"""Labels of pixels as one writes them in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from benchmarks.operations.problems import Problem
from benchmarks.operations.registry import Call, Size
from torch import Tensor

CHUNK_BYTES = 256 * 2**20


def planes(problem: Problem) -> Tensor:
    """The seeds as the walk leaves them: (B, C, h, w), labels side by side."""
    return problem.seeds.transpose(1, 2).unflatten(2, problem.size.grid)


def _upsample(given: Tensor, pixels: tuple[int, int]) -> Tensor:
    return functional.interpolate(given.float(), size=pixels, mode="bilinear", align_corners=False)


def label_by_label(problem: Problem) -> Call:
    """A running best over as many labels at a time as 256 MiB hold."""
    given, pixels = planes(problem), problem.size.pixels
    at_once = _labels_at_once(problem.size)

    def call() -> Tensor:
        best = given.new_full((given.shape[0], *pixels), -torch.inf, dtype=torch.float32)
        labels = torch.zeros(best.shape, dtype=torch.int64, device=given.device)
        for first in range(0, given.shape[1], at_once):
            value, index = _upsample(given[:, first : first + at_once], pixels).max(dim=1)
            labels = torch.where(value > best, index + first, labels)
            best = torch.maximum(best, value)
        return labels

    return call


def _labels_at_once(size: Size) -> int:
    return max(1, CHUNK_BYTES // (4 * size.batch * size.pixels[0] * size.pixels[1]))


def label_by_label_bytes(size: Size) -> int:
    """The chunk, and the best and the labels so far, new, and chosen."""
    return CHUNK_BYTES + 48 * size.batch * size.pixels[0] * size.pixels[1]


def whole_planes(problem: Problem) -> Call:
    """All labels at every pixel."""
    given, pixels = planes(problem), problem.size.pixels
    return lambda: _upsample(given, pixels).argmax(dim=1)


def whole_planes_bytes(size: Size) -> int:
    """Every label at every pixel, in float32."""
    return 4 * size.batch * size.labels * size.pixels[0] * size.pixels[1]
