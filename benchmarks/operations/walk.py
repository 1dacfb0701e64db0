"""Stage 3 in the registry: the window product, the walk, its limit and gradient, and the whole refinement."""

from __future__ import annotations

from collections.abc import Callable

import torch
from benchmarks.operations import sizes
from benchmarks.operations.attention import MEBIBYTE, layer_work
from benchmarks.operations.problems import ALPHA, Problem
from benchmarks.operations.registry import Call, Operation, Peer, Size, Work
from benchmarks.peers import compiled, libraries, published, torch_walk
from torch import Tensor

import nerve_kernels as nk
from nerve_kernels import reference

COMPOSITE = "composite: CSR, pooled U"
DENSE = "dense S in torch"
SPARSE = "torch CSR"
BADDBMM = "dense S, baddbmm, {}"


def _state(size: Size) -> int:
    """Bytes of one G or P."""
    return 4 * size.batch * size.tokens * size.labels


def _walk_work(size: Size, *, local_only: bool = False) -> Work:
    columns = size.window**2 + (0 if local_only else size.cells**2)
    operations = size.steps * size.batch * size.tokens * size.labels * (2 * columns + 4)
    return Work(2 * _state(size) + 4 * size.batch * size.tokens * columns, operations)


def _walk_memory(states: int) -> Callable[[Size], int]:
    """So many copies of P (result included), and a constant."""
    return lambda size: 16 * MEBIBYTE + states * _state(size)


def _window_memory(size: Size) -> int:
    # eager pads tiles of values and of P
    return 32 * MEBIBYTE + 8 * _state(size) + 8 * 4 * size.batch * size.tokens * size.window**2


def _dense_bytes(size: Size) -> int:
    return 3 * 8 * size.batch * size.tokens**2


def _dense_takes_too_long(size: Size) -> bool:
    return size.batch * size.tokens**2 > 9216**2 or size.steps * size.batch * size.tokens**2 * size.labels > 4e11


def _walk(problem: Problem, affinity: nk.MixedAffinity | nk.LocalAffinity, backend: str | None) -> Call:
    seeds, steps = problem.seeds, problem.size.steps
    return lambda: nk.random_walk(seeds, affinity, alpha=ALPHA, steps=steps, normalize=False, backend=backend)


def _limit(problem: Problem, backend: str | None) -> Call:
    seeds, affinity = problem.seeds, problem.mixed

    def call() -> Tensor:
        result = nk.random_walk_limit(seeds, affinity, alpha=ALPHA, tol=1e-6, backend=backend)
        assert isinstance(result, Tensor)
        return result

    return call


def _gradient(problem: Problem, backend: str | None) -> Call:
    size = problem.size
    seeds, values, u = (
        tensor.detach().clone().requires_grad_()
        for tensor in (problem.seeds, problem.local.values, problem.global_affinity.u)
    )

    def call() -> Tensor:
        local = nk.LocalAffinity(values, grid=size.grid, window=size.window)
        affinity = nk.mix(nk.LowRankAffinity(u, grid=size.grid, cells=size.cells), local)
        result = nk.random_walk(seeds, affinity, alpha=ALPHA, steps=size.steps, normalize=False, backend=backend)
        return torch.autograd.grad(result.square().sum(), (seeds, values, u))[0]

    return call


def _reference_gradient(problem: Problem) -> Tensor:
    seeds = problem.seeds.detach().double().requires_grad_()
    result = reference.random_walk(seeds, problem.dense, alpha=ALPHA, steps=problem.size.steps, normalize=False)
    return torch.autograd.grad(result.square().sum(), seeds)[0]


def _refine(problem: Problem, backend: str | None) -> Call:
    """The method from one layer's q and k and CLIP's seeds to labels."""
    q, k, seeds, size = problem.q, problem.k, problem.seeds, problem.size

    def call() -> Tensor:
        stats = nk.attention_statistics(q, k, grid=size.grid, window=size.window, cells=size.cells, backend=backend)
        S = stats.affinity(nk.head_weights(stats.entropy, num_keys=size.tokens), backend=backend)
        return nk.random_walk(seeds, S, alpha=ALPHA, steps=size.steps, backend=backend)

    return call


def _refine_naive(problem: Problem) -> Call:
    """The same method on whole maps and a dense S."""
    q, k, seeds, size = problem.q, problem.k, problem.seeds, problem.size

    def call() -> Tensor:
        w = reference.head_weights(reference.attention_entropy(q, k), num_keys=size.tokens)
        window, cells = (size.window, size.window), (size.cells, size.cells)
        local_part = reference.local_affinity(q, k, w, grid=size.grid, window=window)
        global_part = reference.global_affinity(q, k, w, grid=size.grid, cells=cells)
        return reference.random_walk(seeds, reference.mix(global_part, local_part, 0.5), alpha=ALPHA, steps=size.steps)

    return call


PRODUCT = Operation(
    name="S_local @ P",
    ours=lambda p, backend: (
        lambda values, seeds, size: (
            lambda: torch.ops.nerve_kernels.window_product(
                values, seeds, size.grid, (size.window, size.window), backend=backend
            )
        )
    )(p.local.values, p.seeds, p.size),
    reference=lambda p: p.dense_local @ p.seeds.double(),
    work=lambda size: Work(
        2 * _state(size) + 4 * size.batch * size.tokens * size.window**2,
        2 * size.batch * size.tokens * size.window**2 * size.labels,
    ),
    extra_bytes=_window_memory,
    baseline=SPARSE,
    peers=(
        Peer(SPARSE, torch_walk.sparse_product),
        Peer(
            "unfold, einsum",
            torch_walk.unfolded_product,
            extra_bytes=lambda size: 2 * size.window**2 * _state(size),
            too_long=lambda size: size.labels > 171,
        ),
        Peer("scipy.sparse CSR", libraries.scipy_product, requires=("scipy",), devices=("cpu",)),
    ),
    sizes=(sizes.walk(64, 21), sizes.walk(64, 171), sizes.walk(64, 847)),
    quick=(sizes.walk(64, 21),),
    cold=False,  # inside a walk everything but the window weights was touched a moment ago
)

WALK = Operation(
    name="random_walk",
    ours=lambda p, backend: _walk(p, p.mixed, backend),
    reference=lambda p: reference.random_walk(p.seeds, p.dense, alpha=ALPHA, steps=p.size.steps, normalize=False),
    work=_walk_work,
    extra_bytes=lambda size: _window_memory(size) + _walk_memory(8)(size),
    baseline=COMPOSITE,
    peers=(
        Peer(COMPOSITE, torch_walk.composite_walk),
        Peer(
            DENSE,
            torch_walk.dense_walk,
            extra_bytes=_dense_bytes,
            too_long=_dense_takes_too_long,
            past_cache=True,
        ),
        *(
            Peer(
                BADDBMM.format(precision),
                torch_walk.baddbmm_walk(precision),
                same_result=precision == "float32",  # the others round S and P
                devices=("cuda",),
                extra_bytes=_dense_bytes,
                too_long=_dense_takes_too_long,
                past_cache=True,
            )
            for precision in ("float32", "tf32", "bfloat16")
        ),
        Peer(
            "torch.compile of the dense loop",
            compiled.dense_walk,
            extra_bytes=_dense_bytes,
            too_long=lambda size: size not in (sizes.walk(64, 21), sizes.SMALL),
            full_only=True,
            past_cache=True,
        ),
        Peer(
            "scipy.sparse CSR, numpy pooled U",
            libraries.scipy_walk,
            requires=("scipy",),
            devices=("cpu",),
            too_long=lambda size: size.grid[0] % size.cells != 0,
        ),
    ),
    sizes=sizes.WALKS,
    quick=(sizes.walk(64, 21),),
    sweeps=sizes.WALK_SWEEPS,
    sweep_peers=(COMPOSITE,),
)

BFLOAT16_WALK = Operation(
    name="random_walk, bfloat16 S",
    ours=lambda p, backend: _walk(p, p.mixed.to(torch.bfloat16), backend),
    reference=WALK.reference,
    # half the bytes for S
    work=lambda size: Work(_state(size) + _walk_work(size).bytes // 2, _walk_work(size).operations),
    extra_bytes=WALK.extra_bytes,
    baseline="ours, S as it comes",
    peers=(Peer("ours, S as it comes", lambda p: _walk(p, p.mixed, None)),),
    sizes=(sizes.walk(64, 21), sizes.walk(128, 150, 32)),
    quick=(sizes.walk(64, 21),),
    tolerance=4e-3,
)

LOCAL_WALK = Operation(
    name="random_walk, local only",
    ours=lambda p, backend: _walk(p, p.local, backend),
    reference=lambda p: reference.random_walk(p.seeds, p.dense_local, alpha=ALPHA, steps=p.size.steps, normalize=False),
    work=lambda size: _walk_work(size, local_only=True),
    extra_bytes=lambda size: _window_memory(size) + _walk_memory(8)(size),
    baseline=SPARSE,
    peers=(
        Peer(SPARSE, torch_walk.sparse_walk),
        Peer("PyG APPNP", libraries.pyg_appnp, requires=("torch_geometric",)),
        Peer(
            "networkx pagerank (forward chain, a call for each label)",
            libraries.networkx_pagerank,
            same_result=False,
            requires=("networkx", "scipy"),
            devices=("cpu",),
            too_long=lambda size: size.tokens > 1024,
            full_only=True,
        ),
    ),
    sizes=(sizes.walk(32, 21), sizes.walk(64, 21), sizes.walk(64, 150)),
    quick=(sizes.walk(32, 21),),
)

LIMIT = Operation(
    name="random_walk_limit",
    ours=_limit,
    reference=lambda p: reference.random_walk_limit(p.seeds, p.dense, alpha=ALPHA),
    # how many products it takes is the solver's affair, so only bytes are known beforehand
    work=lambda size: Work(_walk_work(size).bytes),
    # the solver keeps ten vectors in float64, and float64 copies of what it is given
    extra_bytes=lambda size: 2 * _window_memory(size) + _walk_memory(40)(size) + 16 * size.tokens * size.cells**2,
    baseline="torch.linalg.solve",
    peers=(
        Peer(
            "torch.linalg.solve",
            torch_walk.linear_solve,
            extra_bytes=_dense_bytes,
            too_long=lambda size: size.tokens > 4096,
            past_cache=True,
        ),
        Peer(
            "scipy splu of the local part alone",
            libraries.scipy_solve,
            same_result=False,
            requires=("scipy",),
            devices=("cpu",),
            too_long=lambda size: size.tokens > 4096,
        ),
        Peer(
            "scikit-image random_walker (hard seeds, colours)",
            libraries.skimage_random_walker,
            same_result=False,
            requires=("skimage",),
            devices=("cpu",),
        ),
    ),
    sizes=(sizes.walk(32, 21), sizes.walk(64, 21)),
    quick=(sizes.walk(32, 21),),
)

WALK_GRADIENT = Operation(
    name="random_walk, forward and backward",
    ours=_gradient,
    reference=_reference_gradient,
    work=lambda size: Work(3 * _walk_work(size).bytes, 3 * _walk_work(size).operations),
    # 2 √L copies of P, and the gradients of u and the values beside one step's share of them
    extra_bytes=lambda size: (
        2 * _window_memory(size) + _walk_memory(8 + 4 * size.steps)(size) + 16 * size.tokens * size.cells**2
    ),
    baseline="autograd through the composite",
    peers=(Peer("autograd through the composite", torch_walk.composite_gradient),),
    sizes=(sizes.walk(32, 21), sizes.walk(64, 21)),
    quick=(sizes.walk(32, 21),),
    differentiates=True,
)

REFINE = Operation(
    name="refine seeds (q, k, G to P)",
    ours=_refine,
    reference=lambda p: _refine_naive(p)(),
    work=lambda size: Work(
        layer_work(size).bytes + _walk_work(size).bytes,
        layer_work(size).operations + _walk_work(size).operations,
        layer_work(size).exponentials,
    ),
    extra_bytes=lambda size: 64 * MEBIBYTE + _window_memory(size) + 16 * size.batch * size.tokens * size.cells**2,
    baseline="CLIPer-style chain, re-associated",
    peers=(
        Peer(
            "CLIPer-style chain, re-associated",
            published.cliper_reassociated,
            same_result=False,
            published=True,
            extra_bytes=lambda size: 3 * size.map_bytes,
            too_long=lambda size: size.map_bytes > 2**31,
        ),
        Peer(
            "CLIPer-style chain, as printed",
            published.cliper_as_printed,
            same_result=False,
            published=True,
            extra_bytes=lambda size: 3 * size.map_bytes,
            too_long=lambda size: size.map_bytes > 2**31,
        ),
        Peer("LPOSS-style label propagation", published.lposs_style, same_result=False, published=True),
        Peer("PAMR, 10 iterations", published.pamr, same_result=False, published=True),
    ),
    sizes=(sizes.SD15_32, sizes.SD15_64),
    quick=(sizes.SD15_32,),
)

ALL = (PRODUCT, WALK, BFLOAT16_WALK, LOCAL_WALK, LIMIT, WALK_GRADIENT, REFINE)
