"""From tokens to pixels in the registry."""

from __future__ import annotations

from benchmarks.operations import sizes
from benchmarks.operations.problems import Problem
from benchmarks.operations.registry import Call, Operation, Peer, Size, Work
from benchmarks.peers import torch_pixels

from nerve_kernels import reference
from nerve_kernels._operators.pixels.best_labels import BLOCK_BYTES, best_labels

LABEL_BY_LABEL = "interpolate, a few labels at a time"


def _best_labels(problem: Problem, backend: str | None) -> Call:
    planes, pixels = torch_pixels.planes(problem), problem.size.pixels
    return lambda: best_labels(planes, *pixels, 0.0, -1, backend)


def _work(size: Size) -> Work:
    pixels = size.batch * size.pixels[0] * size.pixels[1]
    # along a row of pixels for each row of tokens, then once for each pixel: two products and a comparison
    operations = 4 * size.batch * size.labels * size.grid[0] * size.pixels[1] + 4 * size.labels * pixels
    return Work(4 * size.batch * size.tokens * size.labels + 8 * pixels, operations)


BEST_LABELS = Operation(
    name="best_labels",
    ours=_best_labels,
    reference=lambda problem: reference.best_labels(
        torch_pixels.planes(problem), size=problem.size.pixels, threshold=0.0, fallback=-1
    ),
    work=_work,
    # the label map, and the blocks of rows of plain torch
    extra_bytes=lambda size: 8 * size.batch * size.pixels[0] * size.pixels[1] + 6 * BLOCK_BYTES,
    baseline=LABEL_BY_LABEL,
    peers=(
        Peer(LABEL_BY_LABEL, torch_pixels.label_by_label, extra_bytes=torch_pixels.label_by_label_bytes),
        Peer("interpolate, then argmax", torch_pixels.whole_planes, extra_bytes=torch_pixels.whole_planes_bytes),
    ),
    sizes=(sizes.ORDINARY_IMAGE, sizes.LARGE_IMAGE),
    quick=(sizes.ORDINARY_IMAGE,),
    backends=("triton", "cpp", "eager"),
    # where two labels are equally good but for rounding, another of them is the best
    tolerance=1e-2,
)

ALL = (BEST_LABELS,)
