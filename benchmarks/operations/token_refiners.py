"""The refiners of the field in the registry: CLIPer's product of heads, and LPOSS with its graph."""

from __future__ import annotations

from dataclasses import replace

import torch
from benchmarks.operations import sizes
from benchmarks.operations.attention import MEBIBYTE, WHOLE_MAPS, layer_work
from benchmarks.operations.problems import Problem
from benchmarks.operations.registry import Operation, Peer, Size, Work
from benchmarks.peers import token_refiners as peers
from torch import Tensor

from nerve_kernels import reference, refiners

CLIPER_SIZE = replace(sizes.SDXL_64, name="64², 10 heads, d = 64, C = 21")
CLIPER_QUICK = replace(sizes.SD15_32, name="32², 8 heads, d = 80, C = 21")
LPOSS_SIZE = Size("64², D = 768, k = 400, C = 150", (64, 64), heads=12, head_size=64, labels=150)
LPOSS_QUICK = Size("32², D = 768, k = 400, C = 21", (32, 32), heads=12, head_size=64, labels=21)

AS_PUBLISHED, REASSOCIATED = "as published: product of the maps", "re-associated: maps, then A (A (⋯ G))"
BY_SCIPY = "scipy: CSR, conjugate gradients a label"


def _list_bytes(size: Size) -> int:
    """Room for the entries listed of one head's rows, keys packed, blocks."""
    return 96 * MEBIBYTE + size.tokens * (8 * 1024 + 8 * size.heads * size.head_size + 16 * size.labels)


def _graph_bytes(size: Size) -> int:
    """A block of inner products, neighbours and their counterparts on their way to a graph, vectors of the solver."""
    edges = 2 * size.tokens * peers.neighbours_of(size)
    return 192 * MEBIBYTE + 96 * edges + 40 * size.tokens * size.labels


def _solve(problem: Problem) -> Tensor:
    size = problem.size
    graphs = [
        reference.knn_affinity(
            unit,
            peers.neighbours_of(size),
            power=peers.LPOSS_POWER,
            positions=peers.positions_of(size),
            distance_scale=peers.LPOSS_SIGMA,
            distance_power=1,
            symmetric=True,
            normalize="symmetric",
        )
        for unit in peers.features_of(problem).double()
    ]
    return peers.cut_gradients(torch.stack(graphs), problem.seeds.double())


def _lposs_work(size: Size) -> Work:
    products = 2 * size.batch * size.tokens**2 * size.heads * size.head_size
    edges = 2 * size.batch * size.tokens * peers.neighbours_of(size)
    inputs = 4 * size.batch * size.tokens * (size.heads * size.head_size + 2 * size.labels)
    return Work(inputs + 8 * edges, products + 2 * peers.LPOSS_STEPS * edges * size.labels, edges)


CLIPER = Operation(
    name="cliper",
    ours=lambda p, backend: lambda: refiners.cliper(p.q, p.k, p.seeds, backend=backend),
    reference=lambda p: reference.cliper(p.q, p.k, p.seeds),
    work=lambda size: layer_work(size, result=4 * size.batch * size.tokens * size.labels),
    extra_bytes=_list_bytes,
    baseline=REASSOCIATED,
    peers=(
        Peer(
            AS_PUBLISHED,
            peers.cliper_as_published,
            published=True,
            extra_bytes=lambda size: WHOLE_MAPS * size.map_bytes,
            too_long=lambda size: size.map_bytes > 2**30,
            full_only=True,
        ),
        Peer(
            REASSOCIATED,
            peers.cliper_reassociated,
            extra_bytes=lambda size: WHOLE_MAPS * size.map_bytes,
            too_long=lambda size: size.map_bytes > 2**30,
        ),
    ),
    sizes=(CLIPER_SIZE,),
    quick=(CLIPER_QUICK,),
    backends=("cpp", "eager"),
)

LPOSS = Operation(
    name="lposs, 10 steps",
    ours=lambda p, backend: (
        lambda features: (
            lambda: refiners.lposs(
                features, p.seeds, grid=p.size.grid, k=peers.neighbours_of(p.size), iterations=peers.LPOSS_STEPS
            )
        )
    )(peers.features_of(p)),
    reference=_solve,
    work=_lposs_work,
    extra_bytes=_graph_bytes,
    baseline=BY_SCIPY,
    peers=(
        Peer(
            BY_SCIPY,
            peers.lposs_by_scipy,
            published=True,
            requires=("scipy",),
            devices=("cpu",),
            extra_bytes=lambda size: 4 * size.tokens**2 + 200 * size.tokens * peers.neighbours_of(size),
        ),
    ),
    sizes=(LPOSS_SIZE,),
    quick=(LPOSS_QUICK,),
    backends=("cpp",),  # of the steps within, each takes the best
)

ALL = (CLIPER, LPOSS)
