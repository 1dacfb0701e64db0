"""best_labels: the most probable label of each pixel, a piece of a row of pixels per program, label after label."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerve_kernels._triton.launch import Launch


@triton.jit
def _between(pixels, count, tokens):
    """The two tokens along one side that each pixel lies between, and their weights."""
    position = tl.maximum((tokens / count) * (pixels.to(tl.float32) + 0.5) - 0.5, 0.0)
    first = tl.minimum(position.to(tl.int32), tokens - 1)
    weight = tl.minimum(tl.maximum(position - first.to(tl.float32), 0.0), 1.0)
    return first, tl.minimum(first + 1, tokens - 1), 1.0 - weight, weight


@triton.jit
def best_labels_kernel(
    planes, labels,
    planes_batch, planes_label, planes_row, planes_column,
    count, token_rows, token_columns, height, width, threshold, fallback,
    PIXELS: tl.constexpr,
):  # fmt: skip
    pieces = tl.cdiv(width, PIXELS)
    image_row = tl.program_id(0) // pieces
    batch, y = (image_row // height).to(tl.int64), image_row % height
    x = (tl.program_id(0) % pieces) * PIXELS + tl.arange(0, PIXELS)
    valid = x < width
    top, bottom, top_weight, bottom_weight = _between(y, height, token_rows)
    left, right, left_weight, right_weight = _between(x, width, token_columns)
    base = planes + batch * planes_batch
    top_base, bottom_base = base + top.to(tl.int64) * planes_row, base + bottom.to(tl.int64) * planes_row
    left, right = left.to(tl.int64) * planes_column, right.to(tl.int64) * planes_column
    best = tl.full([PIXELS], float("-inf"), tl.float32)
    best_label = tl.zeros([PIXELS], tl.int32)
    for label in range(count):
        above = tl.load(top_base + left, mask=valid, other=0.0).to(tl.float32) * left_weight
        above += tl.load(top_base + right, mask=valid, other=0.0).to(tl.float32) * right_weight
        below = tl.load(bottom_base + left, mask=valid, other=0.0).to(tl.float32) * left_weight
        below += tl.load(bottom_base + right, mask=valid, other=0.0).to(tl.float32) * right_weight
        value = above * top_weight + below * bottom_weight
        better = value > best  # never so for what is not a number
        best = tl.where(better, value, best)
        best_label = tl.where(better, label, best_label)
        top_base += planes_label
        bottom_base += planes_label
    best_label = tl.where(best < threshold, fallback, best_label)
    tl.store(labels + image_row.to(tl.int64) * width + x, best_label.to(tl.int64), mask=valid)


def plan(planes: Tensor, labels: Tensor, threshold: float, fallback: int) -> Launch:
    """The launch that writes ``labels``, (B, height, width) int64."""
    batch, height, width = labels.shape
    names = ("planes_batch", "planes_label", "planes_row", "planes_column")
    pixels = max(32, min(512, triton.next_power_of_2(width)))
    return Launch(
        best_labels_kernel,
        batch * height * triton.cdiv(width, pixels),
        {
            "planes": planes,
            "labels": labels,
            **dict(zip(names, planes.stride(), strict=True)),
            "count": planes.shape[1],
            "token_rows": planes.shape[2],
            "token_columns": planes.shape[3],
            "height": height,
            "width": width,
            "threshold": threshold,
            "fallback": fallback,
        },
        {"PIXELS": pixels},
        4,
        2,
    )


def run(planes: Tensor, height: int, width: int, threshold: float, fallback: int) -> Tensor:
    """The first of the best labels of every pixel."""
    labels = torch.empty((planes.shape[0], height, width), dtype=torch.int64, device=planes.device)
    plan(planes, labels, threshold, fallback).run()
    return labels
