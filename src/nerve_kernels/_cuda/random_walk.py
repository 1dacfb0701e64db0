"""The persistent walk as a backend of ``random_walk``: what it cannot take, when it is preferred, and its call."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from nerve_kernels import _native
from nerve_kernels._arguments import AffinityArguments, tensors_of, why_not_float64, why_not_on_gpu

from .walk_plan import Machine, WalkPlan, WalkSizes, is_worthwhile, plan_walk


def why_unsupported(seeds: Tensor, affinity: AffinityArguments, *options: Any) -> str | None:
    """Why it cannot run this walk, or None; asks the GPU of the seeds what it holds."""
    tensors = tensors_of((seeds, affinity))
    reason = why_not_on_gpu(tensors) or _native.why_cuda_not_loaded() or why_not_float64(tensors)
    return reason or why_affinity_unsupported(seeds, affinity)


def why_affinity_unsupported(seeds: Tensor, affinity: AffinityArguments) -> str | None:
    """The part of :func:`why_unsupported` that follows from what is walked on."""
    if affinity.dense is not None:
        return "it walks on window values and cells, got a dense affinity"
    if affinity.local_kind in ("stencil", "graph"):
        return f"it walks on plain windows, got a {affinity.local_kind}"
    if affinity.v is not None:
        return "it averages over cells, got explicit factors u and v"
    if seeds.numel() == 0:
        return "there is nothing to walk on: the seeds are empty"
    plan = _plan(_sizes(seeds, affinity), seeds.device)
    return plan if isinstance(plan, str) else None


def is_preferred(seeds: Tensor, affinity: AffinityArguments, *options: Any) -> bool:
    """Whether a walk that it can run should run on it rather than on Triton: the rule of ``walk_plan``."""
    return is_worthwhile(_plan(_sizes(seeds, affinity), seeds.device))


def run(seeds: Tensor, affinity: AffinityArguments, alpha: float, steps: int, normalize: bool) -> Tensor:
    """All steps in one launch."""
    plan = _plan(_sizes(seeds, affinity), seeds.device)
    assert isinstance(plan, WalkPlan)
    layout = [plan.labels_per_lane, *plan.tile, plan.cells_per_chunk, int(plan.u_resident), plan.teams]
    values, u, _, _ = affinity.map(Tensor.contiguous).parts
    sizes = affinity.grid, affinity.window, affinity.cells, affinity.beta
    result: Tensor = torch.ops.nerve_kernels._random_walk_cuda(
        seeds.contiguous(), values, u, *sizes, alpha, steps, normalize, layout
    )
    return result


def _sizes(seeds: Tensor, affinity: AffinityArguments) -> WalkSizes:
    return WalkSizes(
        batch=seeds.shape[0],
        labels=seeds.shape[2],
        grid=(affinity.grid[0], affinity.grid[1]),
        window=(0, 0) if affinity.values is None else (affinity.window[0], affinity.window[1]),
        cells=(0, 0) if affinity.u is None else (affinity.cells[0], affinity.cells[1]),
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
