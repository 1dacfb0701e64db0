"""From queries and keys to both affinities: one look at the scores against a pass for each operator."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from benchmarks.operations import sizes
from benchmarks.operations.attention import (
    cells_reference,
    compiled_peer,
    layer_work,
    linear_memory,
    naive,
    window_reference,
)
from benchmarks.operations.problems import Problem
from benchmarks.operations.registry import Call, Operation, Peer, Size, Work
from benchmarks.peers import compiled
from benchmarks.peers.torch_attention import naive_affinities
from torch import Tensor

import nerve_kernels as nk
from nerve_kernels import reference

LAYERS = 3


def _statistics(problem: Problem, backend: str | None) -> nk.AttentionStatistics:
    size = problem.size
    return nk.attention_statistics(
        problem.q, problem.k, grid=size.grid, window=size.window, cells=size.cells, backend=backend
    )


def _three_layers(problem: Problem, backend: str | None) -> Call:
    q, k, size = problem.q.chunk(LAYERS, dim=1), problem.k.chunk(LAYERS, dim=1), problem.size
    grids = [size.grid] * LAYERS

    def call() -> Tensor:
        stats = nk.attention_statistics(q, k, grids=grids, window=size.window, cells=size.cells, backend=backend)
        S = stats.affinity(nk.head_weights(stats.entropy, num_keys=[size.tokens] * LAYERS), backend=backend)
        return torch.cat([S.local.values, S.low_rank.u], dim=-1)

    return call


def _three_layers_a_pass_each(problem: Problem) -> Call:
    q, k, size = problem.q.chunk(LAYERS, dim=1), problem.k.chunk(LAYERS, dim=1), problem.size
    grids = [size.grid] * LAYERS

    def call() -> Tensor:
        entropies, lses = zip(*map(partial(nk.attention_entropy, return_lse=True), q, k), strict=True)
        w = nk.head_weights(entropies, num_keys=[size.tokens] * LAYERS)
        local = nk.local_affinity(q, k, w, grids=grids, window=size.window, lse=lses)
        global_part = nk.global_affinity(q, k, w, grids=grids, cells=size.cells, lse=lses)
        return torch.cat([local.values, global_part.u], dim=-1)

    return call


def _weighed(stats: nk.AttentionStatistics, size: Size, backend: str | None) -> Tensor:
    w = nk.head_weights(stats.entropy, num_keys=size.tokens)
    assert isinstance(w, Tensor)
    values, u = stats.local_affinity(w, backend=backend).values, stats.global_affinity(w, backend=backend).u
    return torch.cat([values, u], dim=-1)


def _one_look(problem: Problem, backend: str | None) -> Call:
    return lambda: _weighed(_statistics(problem, backend), problem.size, backend)


def _weights_afterwards(problem: Problem, backend: str | None) -> Call:
    stats = _statistics(problem, backend)
    return lambda: _weighed(stats, problem.size, backend)


def _a_pass_each(problem: Problem, backend: str | None = None) -> Call:
    q, k, size = problem.q, problem.k, problem.size

    def call() -> Tensor:
        entropy, lse = nk.attention_entropy(q, k, return_lse=True, backend=backend)
        w = nk.head_weights(entropy, num_keys=size.tokens)
        local = nk.local_affinity(q, k, w, grid=size.grid, window=size.window, lse=lse, backend=backend)
        global_part = nk.global_affinity(q, k, w, grid=size.grid, cells=size.cells, lse=lse, backend=backend)
        return torch.cat([local.values, global_part.u], dim=-1)

    return call


def _both_reference(problem: Problem) -> Tensor:
    w = reference.head_weights(reference.attention_entropy(problem.q, problem.k), num_keys=problem.size.tokens)
    return torch.cat([window_reference(problem, w), cells_reference(problem, w)], dim=-1)


def _kept(size: Size) -> int:
    """Numbers a token: every head's window and cells, and its affinities."""
    return (size.heads + 1) * (size.window**2 + size.cells**2)


NAIVE = naive("naive: maps, sum, gather, cell sums", lambda p: naive_affinities(p.q, p.k, p.size))
PASSES = Peer("entropy, local and global affinity: a pass each", _a_pass_each)

A_PASS_EACH = Operation(
    name="entropy to both affinities",
    ours=_a_pass_each,
    reference=_both_reference,
    # the weights of the second pass come from the first
    work=lambda size: layer_work(size, passes=2, result=4 * size.batch * size.tokens * (49 + size.cells**2)),
    extra_bytes=linear_memory(32, lambda size: size.window**2 + size.cells**2 + size.heads * size.head_size),
    baseline=NAIVE.name,
    peers=(
        NAIVE,
        compiled_peer(compiled.affinities, sizes.SD15_32),
    ),
    sizes=(
        sizes.SD15_64,
        sizes.SD15_32,
        sizes.SD15_64_88,
        sizes.SDXL_64,
        sizes.TWENTY_HEADS_64,
        sizes.SD15_16_BATCH_32,
    ),
    quick=(sizes.SD15_32,),
)

ONE_LOOK = replace(
    A_PASS_EACH,
    name="both affinities from one look",
    ours=_one_look,
    work=lambda size: layer_work(size, result=4 * size.batch * size.tokens * (49 + size.cells**2)),
    extra_bytes=linear_memory(32, lambda size: _kept(size) + size.heads * size.head_size),
    peers=(PASSES, NAIVE),
)

AFTERWARDS = Operation(
    name="other head weights on what was kept",
    ours=_weights_afterwards,
    reference=_both_reference,
    work=lambda size: Work(4 * size.batch * size.tokens * _kept(size), 2 * size.batch * size.tokens * _kept(size)),
    extra_bytes=linear_memory(32, lambda size: 3 * (size.window**2 + size.cells**2)),
    baseline=PASSES.name,
    peers=(PASSES,),
    sizes=(sizes.SD15_64, sizes.SDXL_64),
    quick=(sizes.SD15_32,),
)

# the same heads as of one layer: what is fused does not depend on how they are divided
THREE_LAYERS = replace(
    ONE_LOOK,
    name="both affinities from one look at three layers",
    ours=_three_layers,
    baseline=PASSES.name,
    peers=(replace(PASSES, prepare=_three_layers_a_pass_each),),
    sizes=(sizes.THREE_LAYERS_64,),
    quick=(sizes.THREE_LAYERS_32,),
)

ALL = (A_PASS_EACH, ONE_LOOK, AFTERWARDS, THREE_LAYERS)
