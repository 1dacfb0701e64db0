"""Stages 1 and 2 in the registry, operator by operator: entropy, weights, maps, either affinity, and gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from benchmarks.operations import sizes
from benchmarks.operations.problems import Problem
from benchmarks.operations.registry import Call, Operation, Peer, Size, Work
from benchmarks.peers import compiled, torch_attention
from benchmarks.peers.torch_attention import attention_maps, naive_entropy, naive_fused
from torch import Tensor

import nerve_kernels as nk
from nerve_kernels import reference

MEBIBYTE = 2**20
# naive maps: scores, softmax, entr, all alive at once
WHOLE_MAPS = 4


def layer_work(size: Size, *, passes: int = 1, result: int = 0, maps_read: bool = False) -> Work:
    """``passes`` over all scores; a pass is a product of length d and an exponential for each pair of tokens."""
    pairs = size.batch * size.heads * size.tokens**2
    inputs = 2 * 4 * size.batch * size.heads * size.tokens * size.head_size
    if maps_read:
        return Work(bytes=size.map_bytes + result, operations=2 * pairs)
    return Work(inputs + result, 2 * passes * pairs * size.head_size, passes * pairs)


def _window_work(size: Size) -> Work:
    pairs = size.batch * size.heads * size.tokens * size.window**2
    inputs = 2 * 4 * size.batch * size.heads * size.tokens * size.head_size
    result = 4 * size.batch * size.tokens * size.window**2
    return Work(inputs + result, 2 * pairs * size.head_size, pairs)


def _rows(size: Size) -> int:
    return 4 * size.batch * size.heads * size.tokens


def linear_memory(constant: int, columns: Callable[[Size], int]) -> Callable[[Size], int]:
    """A constant for blocks, and twice the result with its padding: linear in N."""
    return lambda size: constant * MEBIBYTE + 2 * 4 * size.batch * size.tokens * columns(size)


def naive(name: str, function: Callable[[Problem], Tensor]) -> Peer:
    """A peer that makes whole maps."""
    return Peer(
        name,
        lambda problem: lambda: function(problem),
        extra_bytes=lambda size: WHOLE_MAPS * size.map_bytes,
        too_long=lambda size: size.map_bytes > 2**30,
    )


def _map_entropy_work(size: Size) -> Work:
    return layer_work(size, result=_rows(size), maps_read=True)


def _fuse_maps_work(size: Size) -> Work:
    return layer_work(size, result=size.map_bytes // size.heads, maps_read=True)


def copy_of(work: Callable[[Size], Work]) -> Peer:
    """What the memory of a GPU allows: a copy that moves as many bytes."""
    name = "copy of as many bytes"
    return Peer(name, torch_attention.copy(work), same_result=False, devices=("cuda",), past_cache=True)


def compiled_peer(prepare: Callable[[Problem], Call], *measured: Size) -> Peer:
    """A peer compiled by torch, for the sizes named: each is compiled anew, which takes longer than all the rest."""
    return Peer(
        "torch.compile of the naive code",
        prepare,
        extra_bytes=lambda size: 3 * size.map_bytes,
        too_long=lambda size: size not in (*measured, sizes.SMALL),
        full_only=True,
    )


def window_reference(problem: Problem, w: Tensor | None = None) -> Tensor:
    fused = reference.fuse_attention(problem.q, problem.k, problem.w if w is None else w)
    return torch_attention.window_of(fused, problem.size)


def cells_reference(problem: Problem, w: Tensor | None = None) -> Tensor:
    fused = reference.fuse_attention(problem.q, problem.k, problem.w if w is None else w)
    return torch_attention.cell_sums_of(fused, problem.size)


def _gradient(forward: Callable[[Problem], Callable[[Tensor, Tensor], Tensor]]) -> Callable[[Problem], Call]:
    """Forward and backward for q and k of a function of them, squared and summed."""

    def prepare(problem: Problem) -> Call:
        q, k = (tensor.detach().clone().requires_grad_() for tensor in (problem.q, problem.k))
        function = forward(problem)

        def call() -> Tensor:
            return torch.cat(torch.autograd.grad(function(q, k).square().sum(), (q, k)))

        return call

    return prepare


def _reference_gradient(forward: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Problem], Tensor]:
    def run(problem: Problem) -> Tensor:
        q, k = (tensor.detach().double().requires_grad_() for tensor in (problem.q, problem.k))
        return torch.cat(torch.autograd.grad(forward(q, k).square().sum(), (q, k)))

    return run


SDPA = Peer("scaled_dot_product_attention (no entropy)", torch_attention.sdpa, same_result=False)
FLASH = Peer("FlashAttention forward (no entropy)", torch_attention.flash, same_result=False, devices=("cuda",))
# the honest peers: they yield the entropy, exactly
FLASH_ENTROPY, CUDNN_ENTROPY, EFFICIENT_ENTROPY = (
    Peer(f"entropy by {name}, v = k", torch_attention.entropy_by_attention(attention), devices=("cuda",))
    for name, attention in (
        ("FlashAttention", torch_attention.flash_with_lse),
        ("cuDNN", torch_attention.cudnn_with_lse),
        ("memory-efficient attention", torch_attention.efficient_with_lse),
    )
)
NAIVE_FUSED = naive("naive: softmax, weighted sum", lambda p: naive_fused(p.q, p.k, p.w))

ENTROPY = Operation(
    name="attention_entropy",
    ours=lambda p, backend: lambda: nk.attention_entropy(p.q, p.k, backend=backend),
    reference=lambda p: reference.attention_entropy(p.q, p.k),
    work=lambda size: layer_work(size, result=_rows(size)),
    extra_bytes=linear_memory(16, lambda size: 4 * size.heads + size.heads * size.head_size),
    baseline="naive: softmax, entropy",
    peers=(
        naive("naive: softmax, entropy", lambda p: naive_entropy(p.q, p.k)),
        Peer("chunked rows", lambda p: lambda: torch_attention.chunked_entropy(p.q, p.k)),
        SDPA,
        FLASH,
        FLASH_ENTROPY,
        CUDNN_ENTROPY,
        EFFICIENT_ENTROPY,
        compiled_peer(compiled.entropy, sizes.SD15_64, sizes.SD15_32),
    ),
    sizes=sizes.LAYERS,
    quick=(sizes.SD15_32,),
    sweeps=sizes.LAYER_SWEEPS,
    sweep_peers=("naive: softmax, entropy", "chunked rows", SDPA.name),
)

MARGINAL = Operation(
    name="attention_marginal",
    ours=lambda p, backend: (lambda lse: lambda: nk.attention_marginal(p.q, p.k, lse=lse, backend=backend))(p.lse),
    reference=lambda p: reference.attention_marginal(p.q, p.k),
    work=lambda size: layer_work(size, result=_rows(size)),
    extra_bytes=linear_memory(32, lambda size: 4 * size.heads + 2 * size.heads * size.head_size),
    baseline="naive: softmax, mean",
    peers=(naive("naive: softmax, mean", lambda p: attention_maps(p.q, p.k).mean(-2)),),
    sizes=(sizes.SD15_64, sizes.SD15_32),
    quick=(sizes.SD15_32,),
)

MAP_ENTROPY = Operation(
    name="attention_map_entropy",
    ours=lambda p, backend: (lambda maps: lambda: nk.attention_map_entropy(maps, backend=backend))(p.maps),
    reference=lambda p: reference.attention_map_entropy(p.maps),
    work=_map_entropy_work,
    extra_bytes=linear_memory(16, lambda size: 4 * size.heads),
    baseline="naive: entr, sum",
    peers=(Peer("naive: entr, sum", lambda p: lambda: torch.special.entr(p.maps).sum(-1)), copy_of(_map_entropy_work)),
    sizes=(sizes.SD15_64, sizes.SD15_32),
    quick=(sizes.SD15_32,),
)

HEAD_WEIGHTS = Operation(
    name="head_weights",
    ours=lambda p, backend: (lambda entropy: lambda: nk.head_weights(entropy, num_keys=p.size.tokens))(p.entropy),
    reference=lambda p: reference.head_weights(p.entropy, num_keys=p.size.tokens),
    work=lambda size: Work(_rows(size), _rows(size) // 4),
    extra_bytes=linear_memory(4, lambda size: size.heads),
    baseline="naive: mean, softmax",
    peers=(
        Peer(
            "naive: mean, softmax",
            lambda p: (lambda e: lambda: (e.mean(-1) / (-0.1 * torch.tensor(p.size.tokens).log())).softmax(1))(
                p.entropy
            ),
        ),
    ),
    sizes=(sizes.SD15_64,),
    quick=(sizes.SD15_64,),
    backends=("eager",),  # a few hundred numbers: plain torch on every device
    cold=False,
)

FUSE = Operation(
    name="fuse_attention",
    ours=lambda p, backend: (lambda w, lse: lambda: nk.fuse_attention(p.q, p.k, w, lse=lse, backend=backend))(
        p.w, p.lse
    ),
    reference=lambda p: reference.fuse_attention(p.q, p.k, p.w),
    work=lambda size: layer_work(size, result=size.map_bytes // size.heads),
    extra_bytes=linear_memory(32, lambda size: size.tokens + 2 * size.heads * size.head_size),
    baseline=NAIVE_FUSED.name,
    peers=(NAIVE_FUSED, compiled_peer(compiled.fused, sizes.SD15_32)),
    sizes=(sizes.SD15_64, sizes.SD15_32),
    quick=(sizes.SD15_32,),
)

FUSE_MAPS = Operation(
    name="fuse_attention_maps",
    ours=lambda p, backend: (lambda maps, w: lambda: nk.fuse_attention_maps(maps, w, backend=backend))(p.maps, p.w),
    reference=lambda p: reference.fuse_attention_maps(p.maps, p.w),
    work=_fuse_maps_work,
    extra_bytes=linear_memory(16, lambda size: size.tokens),
    baseline="einsum",
    peers=(
        Peer("einsum", lambda p: lambda: torch.einsum("bh,bhij->bij", p.w.to(p.dtype), p.maps)),
        Peer(
            "naive: product, sum",
            lambda p: lambda: (p.maps * p.w.to(p.dtype)[:, :, None, None]).sum(1),
            extra_bytes=lambda size: size.map_bytes,
        ),
        copy_of(_fuse_maps_work),
    ),
    sizes=(sizes.SD15_64, sizes.SD15_32),
    quick=(sizes.SD15_32,),
)

LOCAL = Operation(
    name="local_affinity",
    ours=lambda p, backend: (
        lambda w, lse: (
            lambda: (
                nk.local_affinity(p.q, p.k, w, grid=p.size.grid, window=p.size.window, lse=lse, backend=backend).values
            )
        )
    )(p.w, p.lse),
    reference=window_reference,
    work=_window_work,
    extra_bytes=linear_memory(32, lambda size: 4 * size.window**2 + 4 * size.heads * size.head_size),
    baseline="naive: maps, gather",
    peers=(naive("naive: maps, gather", lambda p: torch_attention.window_of(naive_fused(p.q, p.k, p.w), p.size)),),
    sizes=(sizes.SD15_64, sizes.SD15_32, sizes.SD21_96, sizes.SDXL_64, sizes.SD15_32_BATCH_8),
    quick=(sizes.SD15_32,),
)

GLOBAL = Operation(
    name="global_affinity",
    ours=lambda p, backend: (
        lambda w, lse: (
            lambda: nk.global_affinity(p.q, p.k, w, grid=p.size.grid, cells=p.size.cells, lse=lse, backend=backend).u
        )
    )(p.w, p.lse),
    reference=cells_reference,
    work=lambda size: layer_work(size, result=4 * size.batch * size.tokens * size.cells**2),
    extra_bytes=linear_memory(32, lambda size: size.cells**2 + 2 * size.heads * size.head_size),
    baseline="naive: maps, cell sums",
    peers=(
        naive("naive: maps, cell sums", lambda p: torch_attention.cell_sums_of(naive_fused(p.q, p.k, p.w), p.size)),
    ),
    sizes=(sizes.SD15_64, sizes.SD15_32, sizes.SD21_96, sizes.SDXL_64, sizes.SD15_32_BATCH_8),
    quick=(sizes.SD15_32,),
)

ENTROPY_GRADIENT = Operation(
    name="attention_entropy, forward and backward",
    ours=lambda p, backend: _gradient(lambda _: lambda q, k: nk.attention_entropy(q, k, backend=backend))(p),
    reference=_reference_gradient(lambda q, k: reference.attention_entropy(q, k)),
    work=lambda size: replace(layer_work(size, passes=5, result=_rows(size)), exponentials=0),
    # rows of scores of every head at once, a block of them
    extra_bytes=linear_memory(96, lambda size: 4 * size.heads * size.head_size),
    baseline="naive: autograd through the maps",
    peers=(
        replace(
            naive("naive: autograd through the maps", lambda p: torch.empty(0)),
            prepare=_gradient(lambda _: naive_entropy),
            extra_bytes=lambda size: 6 * size.map_bytes,
        ),
    ),
    sizes=(sizes.SD15_32, sizes.SD15_64),
    quick=(sizes.SD15_32,),
    differentiates=True,
)

ALL = (ENTROPY, MARGINAL, MAP_ENTROPY, HEAD_WEIGHTS, FUSE, FUSE_MAPS, LOCAL, GLOBAL, ENTROPY_GRADIENT)
