"""Triton's kernels compiled before the first call that needs them."""

from __future__ import annotations

import importlib
import os
from typing import Any, overload

import torch
from torch import Tensor

from ._arguments import AffinityArguments
from ._operators.checks import (
    check_cells,
    check_count,
    check_flag,
    check_grid,
    check_number,
    check_optional,
    check_queries_and_keys,
    check_scale,
    check_tensor,
    check_tokens,
    check_type,
    check_window,
    refusal,
)
from ._triton import availability
from .affinity import Affinity
from .grids import Grid, default_cells

MAX_JOBS = 8  # processes that compile by default; each imports torch
STEPS = 3  # a first step, which reads the seeds, a middle one, and the last, which divides


def warmup(
    q: Tensor | None = None,
    k: Tensor | None = None,
    seeds: Tensor | None = None,
    *,
    grid: Grid,
    window: int | Grid = 7,
    cells: int | Grid | None = None,
    scale: float | None = None,
    beta: float = 0.5,
    affinity_dtype: torch.dtype = torch.float32,
    affinity: Affinity | None = None,
    gradients: bool = False,
    jobs: int | None = None,
) -> int:
    """Compile the Triton kernels that calls on such tensors need, so that the first of them does not wait.

    A kernel takes 0.3 to 0.7 s to compile, once for each dtype, head size, window and cell, and stays in Triton's cache
    on disk. Only shapes, dtypes and strides of the tensors count: they may be on the device "meta" and hold nothing.
    Without a GPU, or without Triton, there is nothing to compile, and the arguments are checked all the same.

    Args:
        q: Queries (B, heads, N, d) such as :func:`attention_entropy`, :func:`attention_marginal`,
            :func:`local_affinity`, :func:`global_affinity` and :func:`attention_statistics` will get; ``None`` leaves
            those out.
        k: Keys (B, heads, N, d), like ``q``.
        seeds: Seeds (B, N, C) such as :func:`random_walk` will get; ``None`` leaves the walk out.
        grid: (H, W) with H·W = N.
        window: Of the local affinity, an odd int or a pair of odd ints.
        cells: Of the global affinity, an int or a pair; ``None`` means min(16, side) along each side.
        scale: Factor of the scores; ``None`` means 1/√d.
        beta: Share of the global affinity in the walk's, as in :func:`mix`; with 0 or 1 the walk has one part only.
        affinity_dtype: What the walk's affinity is stored in.
        affinity: One like the walk's, in place of what ``window``, ``cells``, ``beta`` and ``affinity_dtype`` describe:
            a stencil of dilated windows, a graph, factors. Its tensors may be on any device, as the others.
        gradients: Also the kernels of their gradients.
        jobs: Processes that compile; ``None`` means one for each processor, eight at most.

    Returns:
        How many kernels the calls need, compiled now or before; 0 without a GPU or Triton.

    Raises:
        TypeError, ValueError: for a bad argument, named.
        RuntimeError: where a kernel cannot be compiled, with what the compiler says.

    Example:
        >>> import torch, nerve_kernels as nk
        >>> q = torch.empty(1, 8, 4096, 40, dtype=torch.float16, device="meta")
        >>> seeds = torch.empty(1, 4096, 21, device="meta")
        >>> kernels = nk.warmup(q, q, seeds, grid=(64, 64))
        >>> kernels > 0 or "triton" not in nk.available_backends()
        True
    """
    pair = check_grid("grid", grid)
    if q is None and k is None and seeds is None:
        raise ValueError(refusal("q, seeds", "tensors like those to come", None, "give q and k, seeds, or all three"))
    if q is not None or k is not None:
        check_queries_and_keys(q, k)
        assert q is not None
        assert k is not None
        for name, tensor in (("q", q), ("k", k)):
            check_tokens("grid", pair, tensor.shape[2], name)
        _check_dtype("q", q.dtype)
        if q.shape[3] > availability.MAX_HEAD_SIZE:
            most = f"a head size up to {availability.MAX_HEAD_SIZE}"
            raise ValueError(refusal("q", most, q.shape[3], "larger heads run on eager, which compiles nothing"))
    if seeds is not None:
        check_tensor("seeds", seeds, 3, "(B, N, C)")
        check_tokens("grid", pair, seeds.shape[1], "seeds")
        _check_dtype("seeds", seeds.dtype)
    _check_dtype("affinity_dtype", check_type("affinity_dtype", affinity_dtype, torch.dtype))
    if affinity is not None:
        check_tokens("grid", pair, check_type("affinity", affinity, Affinity).shape[1], "affinity")
    sizes = pair, check_window(window, pair), default_cells(pair) if cells is None else check_cells(cells, pair)
    share = check_number("beta", beta, low=0, high=1, wanted="in [0, 1]")
    value = check_scale(scale, 1 if q is None else q.shape[3])
    check_flag("gradients", gradients)
    processes = check_optional(check_count, "jobs", jobs, low=1)
    if availability.why_not_here() is not None:
        return 0
    walk = _described(*sizes, share, affinity_dtype) if affinity is None else affinity.operator_arguments().map(_like)
    walk = walk._replace(row_pointers=_like(walk.row_pointers), columns=_like(walk.columns))
    planned = launches(_like(q), _like(k), _like(seeds), *sizes, value, walk, gradients)
    return _compile(planned, processes or min(MAX_JOBS, os.cpu_count() or 1))


def _check_dtype(name: str, dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        wanted = "torch.float32, torch.float16 or torch.bfloat16"
        raise ValueError(refusal(name, wanted, dtype, "float64 runs on eager, which compiles nothing"))


@overload
def _like(tensor: Tensor) -> Tensor: ...
@overload
def _like(tensor: None) -> None: ...
def _like(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _described(grid: Grid, window: Grid, cells: Grid, beta: float, dtype: torch.dtype) -> AffinityArguments:
    """A window's values and factors over cells, on the device "meta"."""
    values, u = (
        torch.empty((1, grid[0] * grid[1], sides[0] * sides[1]), dtype=dtype, device="meta")
        for sides in (window, cells)
    )
    if beta == 0:
        return AffinityArguments(values, grid=list(grid), window=list(window))
    if beta == 1:
        return AffinityArguments(u=u, grid=list(grid), cells=list(cells))
    return AffinityArguments(values, u, grid=list(grid), window=list(window), cells=list(cells), beta=beta)


def launches(
    q: Tensor | None,
    k: Tensor | None,
    seeds: Tensor | None,
    grid: Grid,
    window: Grid,
    cells: Grid,
    scale: float,
    affinity: AffinityArguments,
    gradients: bool,
) -> list[Any]:
    """The launches of every call on tensors without storage, in their order; none of them runs."""
    from ._triton.launch import recording

    def run(operation: str, *arguments: Any) -> Any:
        return importlib.import_module(f"nerve_kernels._triton.{operation}").run(*arguments)

    with recording() as planned:
        if q is not None and k is not None:
            entropy, lse = run("attention.attention_entropy", q, k, scale)
            w = entropy.new_empty(entropy.shape[:2])
            run("attention.attention_marginal", q, k, lse, scale)
            run("attention.local_affinity", q, k, w, lse, list(grid), list(window), scale, True)
            run("attention.global_affinity", q, k, w, lse, list(grid), list(cells), scale)
            run("attention.attention_statistics", q, k, list(grid), list(window), list(cells), scale, 1.0, False)
            if gradients:
                _plan_gradients(run, q, k, w, lse, grid, window, cells, scale)
        if seeds is not None:
            run("walk.random_walk", seeds, affinity, 0.9, STEPS, True)
            if gradients:
                run("walk.random_walk_backward", seeds, seeds, affinity, 0.9, STEPS, True)
    return planned


def _plan_gradients(
    run: Any, q: Tensor, k: Tensor, w: Tensor, lse: Tensor, grid: Grid, window: Grid, cells: Grid, scale: float
) -> None:
    """Those of the entropy, of the marginal, of either affinity, and of all that is kept in one pass."""
    keys, none = [1, k.shape[2]], (None,) * 4
    pooled = lse.new_empty((q.shape[0], 1, q.shape[2], cells[0] * cells[1])).expand(-1, q.shape[1], -1, -1)
    of_keys = lse.new_empty((*k.shape[:2], 1, k.shape[2])).expand(-1, -1, q.shape[2], -1)
    gradient = "attention.attention_gradient"
    run(gradient, q, k, lse, lse, lse, *none, keys, [1, 1], keys, scale, 1.0)
    run(gradient, q, k, lse, None, None, *none[1:], of_keys, keys, [1, 1], keys, scale, 1.0)
    run(gradient, q, k, lse, None, None, *none[1:], pooled, list(grid), [1, 1], list(cells), scale, 1.0)
    shares = (lse.new_empty((*lse.shape, sides[0] * sides[1])) for sides in (window, cells))
    run(gradient, q, k, lse, lse, lse, *none[2:], *shares, list(grid), list(window), list(cells), scale, 1.0)
    values = lse.new_empty((q.shape[0], q.shape[2], window[0] * window[1]))
    run("attention.local_gradient", values, q, k, w, lse, list(grid), list(window), scale, True)


def _compile(planned: list[Any], jobs: int) -> int:
    """All kernels, first by processes to the cache on disk, from which this process then takes them."""
    from ._triton import compilation

    wanted = compilation.distinct(planned)
    if jobs > 1 and len(wanted) > 1:
        for result in compilation.compile_in_processes(wanted, compilation.current_target(), jobs):
            if result["error"] is not None:
                name = wanted[result["index"]].kernel.__name__
                raise RuntimeError(f"warmup: {name} cannot be compiled: {result['error']}")
    for launch in wanted:
        compilation.compile_launch(launch)
    return len(wanted)
