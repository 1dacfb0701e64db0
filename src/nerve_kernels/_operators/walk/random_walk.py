"""random_walk: all L steps P ← (1−α) G + α S P as one operator; its adjoint is in ``random_walk_backward``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nerve_kernels._affinity_arguments import Parts
from nerve_kernels._cuda import random_walk as persistent_walk
from nerve_kernels._operators import dispatch
from nerve_kernels._operators.library import accumulation_dtype, define, differentiate, fold_batch, implement
from nerve_kernels._triton.availability import run_lazily, why_unsupported_walk

from .affinity_operator import AffinityOperator

AFFINITY_SCHEMA = (
    "Tensor? values, Tensor? u, Tensor? v, Tensor? dense, SymInt[] grid, SymInt[] window, SymInt[] cells, float beta"
)

define(
    f"random_walk(Tensor seeds, {AFFINITY_SCHEMA}, float alpha, SymInt steps, bool normalize, str? backend=None)"
    " -> Tensor"
)
# implemented by the compiled extension, csrc/cpu/walk/random_walk.h: it starts from ``start`` where that is given, and
# besides what random_walk takes it takes v without u, the transpose of u without v
define(
    f"_random_walk_cpp(Tensor seeds, Tensor? start, {AFFINITY_SCHEMA}, float alpha, SymInt steps, bool normalize)"
    " -> Tensor"
)
# implemented by the compiled extension, csrc/cuda/
define(
    "_random_walk_cuda(Tensor seeds, Tensor? values, Tensor? u, SymInt[] grid, SymInt[] window, SymInt[] cells,"
    " float beta, float alpha, SymInt steps, bool normalize, SymInt[] plan) -> Tensor"
)
define("_random_walk_cuda_shared_bytes(Tensor like) -> SymInt")
define("_random_walk_cuda_resident_blocks(Tensor like, SymInt labels_per_lane, SymInt shared_bytes) -> SymInt")


def working_dtype(seeds: Tensor, parts: Parts) -> torch.dtype:
    """float64 where the seeds or the affinity are, else float32."""
    return accumulation_dtype(seeds, *parts)


def row_totals(p: Tensor) -> Tensor:
    """Row sums to divide by; 1 where a row sums to 0, so that a zero row stays zero."""
    total = p.sum(-1, keepdim=True)
    return torch.where(total == 0, 1, total)


def eager(
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
    """A loop over structured products; one write of the result in the seeds' dtype."""
    parts = (values, u, v, dense)
    dtype = working_dtype(seeds, parts)
    wide = seeds.to(dtype)
    operator = AffinityOperator(parts, grid, window, cells, beta, dtype)
    p = operator.walk(wide, wide, alpha, steps)
    if normalize:
        p = p / row_totals(p)
    # the caller's seeds are never handed back as the result
    return p.to(seeds.dtype) if p is not wide or dtype != seeds.dtype else seeds.clone()


def cpp(seeds: Tensor, *arguments: Any) -> Tensor:
    """The compiled kernel: all steps in one call, two buffers of P beside the result.

    Parts stored in a lower precision are widened block by block, with one exception: a bfloat16 ``u`` on a processor
    that multiplies such numbers itself (AVX512_BF16). There what the cells hold is rounded too, as a deviation from its
    mean over the cells, so that what is constant over the picture stays so.
    """
    result: Tensor = torch.ops.nerve_kernels._random_walk_cpp(seeds, None, *arguments)
    return result


def _run(
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
    backend: str | None = None,
) -> Tensor:
    tensors = tuple(item for item in (seeds, values, u, v, dense) if item is not None)
    arguments = (seeds, values, u, v, dense, grid, window, cells, beta, alpha, steps, normalize)
    result: Tensor = dispatch.choose("random_walk", backend, tensors, arguments)(*arguments)
    return result.contiguous()


def _fake(seeds: Tensor, *arguments: Any) -> Tensor:
    return seeds.new_empty(seeds.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.options = inputs[5:13]
    ctx.save_for_backward(*inputs[:5])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    grads = torch.ops.nerve_kernels._random_walk_backward(grad, *tensors, *ctx.options)
    present = (item if tensor is not None else None for item, tensor in zip(grads, tensors, strict=True))
    return *present, *(None,) * 8


implement("random_walk", _run, _fake)
torch.library.register_fake("nerve_kernels::_random_walk_cpp", _fake)
differentiate("random_walk", _backward, _setup_context)
fold_batch("random_walk", broadcastable=(1, 2, 3, 4))
dispatch.register("random_walk", "eager", eager)
dispatch.register("random_walk", "cpp", cpp, dispatch.why_unsupported_cpp)
dispatch.register("random_walk", "triton", run_lazily("walk.random_walk"), why_unsupported_walk)
torch.library.register_fake("nerve_kernels::_random_walk_cuda", _fake)
dispatch.register(
    "random_walk",
    "cuda",
    persistent_walk.run,
    persistent_walk.why_unsupported_tensors,
    persistent_walk.why_unsupported_walk,
    persistent_walk.is_preferred,
)
