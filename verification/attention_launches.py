"""The launches of every Triton kernel at the sizes users have, on tensors without storage: for compiling only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from benchmarks.peers.torch_walk import float32_products
from torch import Tensor
from triton.backends.compiler import GPUTarget

from nerve_kernels._triton.attention import (
    attention_entropy,
    attention_gradient,
    attention_map_entropy,
    attention_marginal,
    attention_statistics,
    fuse_attention,
    fuse_attention_maps,
    fuse_attention_maps_gradient,
    global_affinity,
    local_affinity,
)
from nerve_kernels._triton.launch import Launch, planning_for
from nerve_kernels._triton.pixels import best_labels

HEADS, GRID, WINDOW, CELLS = 8, (64, 64), (7, 7), (16, 16)
UNEVEN_GRID, WIDE_WINDOW = (37, 37), (15, 15)
HEAD_SIZES = (40, 64, 80, 128, 160)
# dtype and how float32 products are taken
PRECISIONS = {
    "fp16": (torch.float16, "ieee"),
    "bf16": (torch.bfloat16, "ieee"),
    "fp32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
}


@contextmanager
def machine_with(target: GPUTarget) -> Iterator[None]:
    """Launches planned in here are those of a machine with such GPUs."""
    before, on_amd = torch.version.hip, target.backend == "hip"
    torch.version.hip = "planned for" if on_amd else None
    try:
        with planning_for(0 if on_amd else target.arch // 10):
            yield
    finally:
        torch.version.hip = before


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def attention_launches(precision: str, head_size: int) -> dict[str, list[Launch]]:
    """Launches of the operations on q and k, by name; ``@`` marks those at a size that divides into nothing."""
    dtype, products = PRECISIONS[precision]
    with float32_products(products):
        return (
            on_grid(dtype, head_size, GRID, WINDOW)
            | on_grid(dtype, head_size, UNEVEN_GRID, WIDE_WINDOW, mark=" @ 37 × 37")
            | gradient_launches(dtype, head_size)
        )


def on_grid(
    dtype: torch.dtype,
    head_size: int,
    grid: tuple[int, int],
    window: tuple[int, int],
    cells: tuple[int, int] = CELLS,
    mark: str = "",
) -> dict[str, list[Launch]]:
    """Launches on one grid, the names of the operations followed by ``mark``."""
    tokens = grid[0] * grid[1]
    # as the projections of a UNet leave them: (B, N, heads · d), seen as (B, heads, N, d)
    q = _empty(1, tokens, HEADS, head_size, dtype=dtype).transpose(1, 2)
    k, w, lse = torch.empty_like(q), _empty(1, HEADS), _empty(1, HEADS, tokens)
    maps = _empty(1, tokens, tokens, dtype=dtype)
    values, u = _empty(1, tokens, window[0] * window[1]), _empty(1, tokens, cells[0] * cells[1])
    scale = head_size**-0.5
    geometry = list(grid), list(window)
    rows = _empty(1, HEADS, tokens)
    statistics = rows, rows, _empty(*rows.shape, values.shape[-1]), _empty(*rows.shape, u.shape[-1]), rows
    return {
        f"attention_entropy{mark}": [attention_entropy.plan(q, k, scale, lse, lse)],
        f"attention_marginal{mark}": [attention_marginal.plan(q, k, lse, scale, lse)],
        f"attention_statistics{mark}": [
            attention_statistics.plan(q, k, *geometry, list(cells), scale, 1.0, statistics)
        ],
        f"fuse_attention{mark}": [fuse_attention.plan(q, k, w, lse, scale, maps)],
        f"global_affinity{mark}": [global_affinity.plan(q, k, w, lse, list(grid), list(cells), scale, u)],
        f"local_affinity{mark}": local_affinity.plan(q, k, w, lse, *geometry, scale, True, values),
    }


def gradient_launches(
    dtype: torch.dtype, head_size: int, grid: tuple[int, int] = GRID, window: tuple[int, int] = WINDOW
) -> dict[str, list[Launch]]:
    """Two launches each for the gradients of q and k: from the entropy alone, and from all statistics."""
    tokens = grid[0] * grid[1]
    q = _empty(1, tokens, HEADS, head_size, dtype=dtype).transpose(1, 2)
    k, rows = torch.empty_like(q), _empty(1, HEADS, tokens)
    results = _empty(*q.shape), _empty(*k.shape), rows
    local, pooled = (_empty(*rows.shape, sides[0] * sides[1]) for sides in (window, CELLS))

    def launches(grid: tuple[int, int], local: Tensor | None, pooled: Tensor | None) -> list[Launch]:
        numbers = {"lse": rows, "a": rows, "b": rows, "cell_lse": None, "c": None, "local": local, "pooled": pooled}
        sizes = list(grid), list(window), list(CELLS)
        return attention_gradient.plan(q, k, numbers, *sizes, head_size**-0.5, 1.0, results)

    return {
        "attention_entropy_backward": launches((1, tokens), None, None),
        "attention_statistics_backward": launches(grid, local, pooled),
    }


def map_launches(dtype: torch.dtype) -> dict[str, list[Launch]]:
    """Launches of the operations on explicit maps, and on probabilities of tokens."""
    tokens = GRID[0] * GRID[1]
    maps = _empty(1, HEADS, tokens, tokens, dtype=dtype)
    fused, entropy = _empty(1, tokens, tokens, dtype=dtype), _empty(1, HEADS, tokens)
    # as the walk leaves them: labels side by side
    planes, labels = _empty(1, *GRID, 21, dtype=dtype).movedim(-1, 1), _empty(1, 512, 512, dtype=torch.int64)
    return {
        "attention_map_entropy": [attention_map_entropy.plan(maps, entropy)],
        "fuse_attention_maps": [fuse_attention_maps.plan(maps, _empty(1, HEADS), fused)],
        "fuse_attention_maps_backward": [
            fuse_attention_maps_gradient.plan(
                _empty(1, tokens, tokens), maps, _empty(1, HEADS), maps, _empty(1, 2 * tokens, HEADS)
            )
        ],
        "best_labels": [best_labels.plan(planes, labels, 0.5, -1)],
    }
