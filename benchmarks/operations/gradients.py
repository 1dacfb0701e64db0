"""Gradients for q and k in the registry: of the entropy, of either affinity, and of all three together.

A call is the backward pass alone: what comes before it is measured by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from benchmarks.operations import sizes
from benchmarks.operations.attention import layer_work, linear_memory
from benchmarks.operations.problems import Problem
from benchmarks.operations.registry import Call, Operation, Peer, Size, Work
from benchmarks.peers.torch_attention import cell_sums_of, naive_entropy, window_of
from torch import Tensor

import nerve_kernels as nk

Results = list[Tensor]
Forward = Callable[[Problem, Tensor, Tensor, str | None], Results]
Definition = Callable[[Problem, Tensor, Tensor], Results]


def _entropy(problem: Problem, q: Tensor, k: Tensor, backend: str | None) -> Results:
    return [nk.attention_entropy(q, k, backend=backend)]


def _local(problem: Problem, q: Tensor, k: Tensor, backend: str | None, lse: Tensor | None = None) -> Results:
    size, known = problem.size, problem.lse if lse is None else lse
    options = {"grid": size.grid, "window": size.window, "lse": known, "backend": backend}
    return [nk.local_affinity(q, k, problem.w, **options).values]  # type: ignore[arg-type]


def _global(problem: Problem, q: Tensor, k: Tensor, backend: str | None, lse: Tensor | None = None) -> Results:
    size, known = problem.size, problem.lse if lse is None else lse
    options = {"grid": size.grid, "cells": size.cells, "lse": known, "backend": backend}
    return [nk.global_affinity(q, k, problem.w, **options).u]  # type: ignore[arg-type]


def _one_by_one(problem: Problem, q: Tensor, k: Tensor, backend: str | None) -> Results:
    entropy, lse = nk.attention_entropy(q, k, return_lse=True, backend=backend)
    return [entropy, *_local(problem, q, k, backend, lse), *_global(problem, q, k, backend, lse)]


def _statistics(problem: Problem, q: Tensor, k: Tensor, backend: str | None) -> Results:
    size = problem.size
    stats = nk.attention_statistics(q, k, grid=size.grid, window=size.window, cells=size.cells, backend=backend)
    local = stats.local_affinity(problem.w, backend=backend)
    assert isinstance(stats.entropy, Tensor)
    return [stats.entropy, local.values, stats.global_affinity(problem.w, backend=backend).u]


def _fused(problem: Problem, q: Tensor, k: Tensor, lse: Tensor) -> Tensor:
    p = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 - lse.to(q.dtype)[..., None]).exp()
    return (p * problem.w.to(q.dtype)[:, :, None, None]).sum(1)


def _naive_together(problem: Problem, q: Tensor, k: Tensor) -> Results:
    fused = _fused(problem, q, k, (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).logsumexp(-1))
    return [naive_entropy(q, k), window_of(fused, problem.size), cell_sums_of(fused, problem.size)]


def _pull(results: Results, q: Tensor, k: Tensor, retain: bool) -> Tensor:
    """The results are their own gradients: those of half the sum of their squares."""
    grads = [item.detach() for item in results]
    return torch.cat(torch.autograd.grad(results, (q, k), grads, retain_graph=retain))


def _backward(forward: Callable[[Problem, Tensor, Tensor], Results]) -> Callable[[Problem], Call]:
    def prepare(problem: Problem) -> Call:
        q, k = (item.detach().clone().requires_grad_() for item in (problem.q, problem.k))
        results = forward(problem, q, k)
        return lambda: _pull(results, q, k, True)

    return prepare


def _reference(definition: Definition) -> Callable[[Problem], Tensor]:
    def run(problem: Problem) -> Tensor:
        q, k = (item.detach().double().requires_grad_() for item in (problem.q, problem.k))
        return _pull(definition(problem, q, k), q, k, False)

    return run


def _on(forward: Forward, backend: str | None) -> Callable[[Problem, Tensor, Tensor], Results]:
    return lambda problem, q, k: forward(problem, q, k, backend)


def _peer(name: str, forward: Forward, backend: str | None) -> Peer:
    return Peer(name, _backward(_on(forward, backend)))


def _naive(definition: Definition) -> Peer:
    return Peer(
        "autograd through the maps",
        _backward(definition),
        extra_bytes=lambda size: 6 * size.map_bytes,
        too_long=lambda size: size.map_bytes > 2**30,
    )


def _work(size: Size, passes: int = 3) -> Work:
    """Products of length d: the scores once more, and their gradients times k and times q."""
    return replace(layer_work(size, passes=passes), exponentials=size.batch * size.heads * size.tokens**2)


def _window_work(size: Size) -> Work:
    pairs = size.batch * size.heads * size.tokens * size.window**2
    inputs = 4 * 4 * size.batch * size.heads * size.tokens * size.head_size
    return Work(inputs + 4 * size.batch * size.tokens * size.window**2, 6 * pairs * size.head_size, pairs)


EAGER = "eager: blocks of rows"

ENTROPY = Operation(
    name="gradient of attention_entropy",
    ours=lambda p, backend: _backward(_on(_entropy, backend))(p),
    reference=_reference(lambda p, q, k: [naive_entropy(q, k)]),
    work=_work,
    # a copy of dk for each chunk of rows, or a block of rows of scores
    extra_bytes=linear_memory(96, lambda size: 8 * size.heads * size.head_size),
    baseline=EAGER,
    peers=(_peer(EAGER, _entropy, "eager"), _naive(lambda p, q, k: [naive_entropy(q, k)])),
    sizes=(sizes.SD15_64, sizes.SD15_32, sizes.TWENTY_HEADS_64),
    quick=(sizes.SD15_32,),
    differentiates=True,
)

LOCAL = replace(
    ENTROPY,
    name="gradient of local_affinity",
    ours=lambda p, backend: _backward(_on(_local, backend))(p),
    reference=_reference(lambda p, q, k: [window_of(_fused(p, q, k, p.lse), p.size)]),
    work=_window_work,
    extra_bytes=linear_memory(96, lambda size: 4 * size.heads * (size.head_size + size.window**2)),
    peers=(_peer(EAGER, _local, "eager"), _naive(lambda p, q, k: [window_of(_fused(p, q, k, p.lse), p.size)])),
)

GLOBAL = replace(
    ENTROPY,
    name="gradient of global_affinity",
    ours=lambda p, backend: _backward(_on(_global, backend))(p),
    reference=_reference(lambda p, q, k: [cell_sums_of(_fused(p, q, k, p.lse), p.size)]),
    peers=(_peer(EAGER, _global, "eager"), _naive(lambda p, q, k: [cell_sums_of(_fused(p, q, k, p.lse), p.size)])),
)

STATISTICS = replace(
    ENTROPY,
    name="gradient of entropy and both affinities, from one look",
    ours=lambda p, backend: _backward(_on(_statistics, backend))(p),
    reference=_reference(_naive_together),
    extra_bytes=linear_memory(64, lambda size: size.heads * (2 * size.head_size + size.window**2 + size.cells**2)),
    baseline="eager, one operator after the other",
    peers=(
        _peer("eager, one operator after the other", _one_by_one, "eager"),
        _peer("one operator after the other", _one_by_one, None),
        _naive(_naive_together),
    ),
)

ALL = (ENTROPY, LOCAL, GLOBAL, STATISTICS)
