"""Bytes that a step over pixels moves, counted program by program: ``python -m verification.stencil_traffic``.

Programs run in their order. What each touches is known from the launch, sector by sector, and checked against the
interpreter of PTX (tests/verification/test_stencil_traffic.py). Between memory and programs is a cache, of half an
H100's, that forgets what was used longest ago: P is held in pieces of a tile's row, weights, seeds and results pass
through. The least is each of P, weights, seeds and result once, without what fills up rows of P.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from verification.ptx.memory import SECTOR
from verification.sparse_launches import SIZES, StencilSize

from nerve_kernels._triton.launch import Launch
from nerve_kernels._triton.walk.rows import padded_rows
from nerve_kernels._triton.walk.stencil_step import StencilStep

CACHE_BYTES = 25 * 2**20
MOST = 1.3
"""Times the least, which a step may move."""


@dataclass(frozen=True)
class Counted:
    """Bytes of a step: the least, what passes between memory and cache, and between cache and programs."""

    least: int
    moved: int
    to_programs: int


def middle_step(size: StencilSize, dtype: torch.dtype) -> Launch:
    """A step between two buffers, which is neither the first nor the last, on tensors without storage."""
    seeds = torch.empty(1, math.prod(size.grid), size.labels, device="meta")
    step = StencilStep.of(size.affinity(dtype))
    ((launch, _),) = step.plan(
        padded_rows(seeds.shape, seeds.device), seeds, padded_rows(seeds.shape, seeds.device), 0.2, 0.8
    ).parts
    return launch


def tiles_of(launch: Launch) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The (y, x) of the tokens of each program, in the order of programs."""
    height, width = launch.arguments["height"], launch.arguments["width"]
    rows, columns = launch.constants["TILE_ROWS"], launch.constants["TILE_COLUMNS"]
    tiles = []
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            y, x = np.meshgrid(
                np.arange(top, min(top + rows, height)), np.arange(left, min(left + columns, width)), indexing="ij"
            )
            tiles.append((y.ravel(), x.ravel()))
    return tiles


def neighbours_of(size: StencilSize, y: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray[np.int64]:
    """The tokens that a tile's places lead to, each once."""
    (height, width), offsets = size.grid, np.array(size.affinity(torch.float32).offsets())
    to_y, to_x = y[:, None] + offsets[:, 0], x[:, None] + offsets[:, 1]
    if size.clamp:
        return np.unique(np.clip(to_y, 0, height - 1) * width + np.clip(to_x, 0, width - 1))
    inside = (to_y >= 0) & (to_y < height) & (to_x >= 0) & (to_x < width)
    return np.unique((to_y * width + to_x)[inside])


def sectors(first: NDArray[np.int64], length: int) -> int:
    """How many sectors pieces of ``length`` bytes at these addresses touch, each once."""
    begin, end = first // SECTOR, (first + length - 1) // SECTOR
    return np.unique(np.concatenate([begin + step for step in range(int((end - begin).max()) + 1)])).size


def count(size: StencilSize, dtype: torch.dtype) -> Counted:
    """Of one step."""
    launch = middle_step(size, dtype)
    (height, width), labels, itemsize = size.grid, size.labels, dtype.itemsize
    tokens, places = height * width, size.places()
    pitch = 4 * launch.arguments["p_units"] * launch.constants["P_ALIGN"]
    piece = launch.constants["TILE_COLUMNS"]
    cache: OrderedDict[tuple[str, int], int] = OrderedDict()
    held = moved = to_programs = 0
    for program, (y, x) in enumerate(tiles_of(launch)):
        found = neighbours_of(size, y, x)
        own = y.size * (places * itemsize + 4 * labels + pitch)
        to_programs += SECTOR * sectors(found * pitch, pitch) + own
        moved += own
        across = -(-width // piece)
        pieces = np.unique(found // width * across + found % width // piece).tolist()
        for key, taken in [*((("p", number), piece * pitch) for number in pieces), (("own", program), own)]:
            if key in cache:
                cache.move_to_end(key)
                continue
            cache[key] = taken
            held += taken
            moved += taken if key[0] == "p" else 0
            while held > CACHE_BYTES:
                held -= cache.popitem(last=False)[1]
    return Counted(tokens * (places * itemsize + 3 * 4 * labels), moved, to_programs)


def main() -> int:
    """Print the table; 1 where a step moves more than it may."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    failed = 0
    for name in ("stencil", "stencil @ 13 × 13"):
        for dtype in (torch.float32, torch.bfloat16):
            size = SIZES[name]
            assert isinstance(size, StencilSize)
            counted = count(size, dtype)
            ratio = counted.moved / counted.least
            failed += ratio > MOST
            print(
                f"{name:20} {dtype!s:15} K = {size.places():3}, least {counted.least / 1e6:6.1f} MB, moved "
                f"{counted.moved / 1e6:6.1f} MB, {ratio:.3f} times; to programs {counted.to_programs / 1e6:7.1f} MB"
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
