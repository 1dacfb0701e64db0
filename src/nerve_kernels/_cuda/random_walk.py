"""The persistent walk as a backend of ``random_walk``: what it cannot take, when it is preferred, and its call."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from nerve_kernels import _native

from .walk_plan import Machine, WalkPlan, WalkSizes, is_worthwhile, plan_walk

MIN_CUDA_CAPABILITY = (8, 0)  # the oldest that csrc/cuda/ is compiled for


def why_unsupported_tensors(tensors: tuple[Tensor, ...]) -> str | None:
    """Why the extension cannot take these tensors, or None."""
    devices = sorted({tensor.device.type for tensor in tensors})
    if devices != ["cuda"]:
        return f"it runs on cuda tensors, got {', '.join(devices)}"
    if not _native.cuda_extension_loaded():
        return f"the compiled CUDA extension is not loaded: {_native.cuda_load_error()}"
    capability = torch.cuda.get_device_capability(tensors[0].device)
    if capability < MIN_CUDA_CAPABILITY:
        return f"it needs compute capability 8.0 or newer, this GPU has {capability[0]}.{capability[1]}"
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        return "it computes in float32, got float64 inputs"
    return None


def why_unsupported_walk(
    seeds: Tensor,
    values: Tensor | None,
    u: Tensor | None,
    v: Tensor | None,
    dense: Tensor | None,
    grid: list[int],
    window: list[int],
    cells: list[int],
    *options: Any,
) -> str | None:
    """Why it cannot run this walk, or None; asks the GPU of the seeds what it holds."""
    if dense is not None:
        return "it walks on window values and cells, got a dense affinity"
    if v is not None:
        return "it averages over cells, got explicit factors u and v"
    if seeds.numel() == 0:
        return "there is nothing to walk on: the seeds are empty"
    plan = _plan(_sizes(seeds, values, u, grid, window, cells), seeds.device)
    return plan if isinstance(plan, str) else None


def is_preferred(
    seeds: Tensor,
    values: Tensor | None,
    u: Tensor | None,
    v: Tensor | None,
    dense: Tensor | None,
    grid: list[int],
    window: list[int],
    cells: list[int],
    *options: Any,
) -> bool:
    """Whether a walk that it can run should run on it rather than on Triton: the rule of ``walk_plan``."""
    return is_worthwhile(_plan(_sizes(seeds, values, u, grid, window, cells), seeds.device))


def run(
    seeds: Tensor,
    values: Tensor | None,
    u: Tensor | None,
    v: Tensor | None,
    dense: Tensor | None,
    grid: list[int],
    window: list[int],
    cells: list[int],
    beta: float,
    alpha: float,
    steps: int,
    normalize: bool,
) -> Tensor:
    """All steps in one launch."""
    plan = _plan(_sizes(seeds, values, u, grid, window, cells), seeds.device)
    assert isinstance(plan, WalkPlan)
    layout = [plan.labels_per_lane, *plan.tile, plan.cells_per_chunk, int(plan.u_resident)]
    values, u = (None if part is None else part.contiguous() for part in (values, u))
    result: Tensor = torch.ops.nerve_kernels._random_walk_cuda(
        seeds.contiguous(), values, u, grid, window, cells, beta, alpha, steps, normalize, layout
    )
    return result


def _sizes(
    seeds: Tensor, values: Tensor | None, u: Tensor | None, grid: list[int], window: list[int], cells: list[int]
) -> WalkSizes:
    return WalkSizes(
        batch=seeds.shape[0],
        labels=seeds.shape[2],
        grid=(grid[0], grid[1]),
        window=(0, 0) if values is None else (window[0], window[1]),
        cells=(0, 0) if u is None else (cells[0], cells[1]),
    )


@functools.lru_cache(maxsize=1024)
def _plan(sizes: WalkSizes, device: torch.device) -> WalkPlan | str:
    """The plan for one GPU; the driver is asked once for each size."""
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    like = torch.empty(0, device=device)

    def resident_blocks(labels_per_lane: int, shared_bytes: int) -> int:
        count: int = torch.ops.nerve_kernels._random_walk_cuda_resident_blocks(like, labels_per_lane, shared_bytes)
        return count

    shared_bytes: int = torch.ops.nerve_kernels._random_walk_cuda_shared_bytes(like)
    return plan_walk(sizes, Machine(multiprocessors, shared_bytes, resident_blocks))
