"""Stages 1 and 2 as one writes them in plain torch: whole maps, or blocks of rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from benchmarks.operations.problems import Problem
from benchmarks.operations.registry import Call, PeerUnavailableError, Size, Work
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from nerve_kernels.grids import cell_of_token, window_neighbours

ROWS_AT_ONCE = 256


def attention_maps(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q kᵀ/√d), (B, heads, N, N)."""
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


def naive_entropy(q: Tensor, k: Tensor) -> Tensor:
    """Entropy of whole maps."""
    return torch.special.entr(attention_maps(q, k)).sum(-1)


def naive_fused(q: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """Weighted sum of whole maps."""
    return (attention_maps(q, k) * w[:, :, None, None]).sum(1)


def chunked_entropy(q: Tensor, k: Tensor) -> Tensor:
    """The same entropy a block of rows and a head at a time, so that scores stay in cache."""
    scale, keys = q.shape[-1] ** -0.5, k.transpose(-1, -2)
    entropy = q.new_empty(q.shape[:3])
    for image in range(q.shape[0]):
        for head in range(q.shape[1]):
            for rows in range(0, q.shape[2], ROWS_AT_ONCE):
                scores = (q[image, head, rows : rows + ROWS_AT_ONCE] * scale) @ keys[image, head]
                scores -= scores.amax(-1, keepdim=True)
                weights = scores.exp()
                total = weights.sum(-1)
                entropy[image, head, rows : rows + ROWS_AT_ONCE] = total.log() - (weights * scores).sum(-1) / total
    return entropy


def window_of(fused: Tensor, size: Size) -> Tensor:
    """A k × k window of each row of a map (B, N, N), renormalised, (B, N, k²)."""
    neighbour, inside = window_neighbours(size.grid, (size.window, size.window), fused.device)
    kept = fused.gather(2, neighbour.expand(fused.shape[0], -1, -1)) * inside
    return kept / kept.sum(-1, keepdim=True)


def cell_sums_of(fused: Tensor, size: Size) -> Tensor:
    """Sums of each row over the cells, (B, N, M)."""
    height, width = size.grid
    if height % size.cells == 0 and width % size.cells == 0:
        shape = (*fused.shape[:2], size.cells, height // size.cells, size.cells, width // size.cells)
        return fused.view(shape).sum((3, 5)).flatten(2)
    cell = cell_of_token(size.grid, (size.cells, size.cells), fused.device)
    return fused.new_zeros(*fused.shape[:2], size.cells**2).index_add_(2, cell, fused)


def naive_affinities(q: Tensor, k: Tensor, size: Size) -> Tensor:
    """Maps, entropies, weights, their sum, a gather of each window, sums over cells: (B, N, k² + M)."""
    maps = attention_maps(q, k)
    score = torch.special.entr(maps).sum(-1).mean(-1) / torch.tensor(size.tokens, dtype=q.dtype).log()
    fused = (maps * (-score / 0.1).softmax(1)[:, :, None, None]).sum(1)
    return torch.cat([window_of(fused, size), cell_sums_of(fused, size)], dim=-1)


def entropy_by_attention(attention: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[[Problem], Call]:
    """Entropy from an attention that has lse beside its result, with v = k: H = lse − scale · q · SDPA(q, k, k)."""

    def prepare(problem: Problem) -> Call:
        q, k = problem.q, problem.k

        def call() -> Tensor:
            attended, lse = attention(q, k)
            return lse - q.shape[-1] ** -0.5 * (q.float() * attended.float()).sum(-1)

        return call

    return prepare


def flash_with_lse(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """FlashAttention, torch's own on a CPU."""
    if q.device.type == "cpu":
        attended, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, k)
    else:
        attended, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, k)[:2]
    return attended, lse


def cudnn_with_lse(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """cuDNN's attention."""
    _need_gpu("cuDNN's attention", q)
    attended, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, k, None, True)[:2]
    return attended, lse.view(q.shape[:3])


def efficient_with_lse(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The memory-efficient attention, which takes float32."""
    _need_gpu("the memory-efficient attention", q)
    attended, lse = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, k, None, True)[:2]
    return attended, lse[..., : q.shape[2]]  # its rows are padded


def _need_gpu(name: str, tensor: Tensor) -> None:
    if tensor.device.type == "cpu":
        raise PeerUnavailableError(f"no GPU: {name} runs on one")


def copy(least: Callable[[Size], Work]) -> Callable[[Problem], Call]:
    """A copy that reads and writes as many bytes in all as an operation must."""

    def prepare(problem: Problem) -> Call:
        half = least(problem.size).bytes * problem.dtype.itemsize // 4 // 2
        source = torch.zeros(half, dtype=torch.uint8, device=problem.device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    return prepare


def sdpa(problem: Problem) -> Call:
    """FlashAttention's forward on the same q and k, with k as values: no entropy, for its speed alone."""
    q, k = problem.q, problem.k
    return lambda: functional.scaled_dot_product_attention(q, k, k)


def flash(problem: Problem) -> Call:
    """FlashAttention itself, where torch would choose among several."""
    q, k = problem.q, problem.k

    def call() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return functional.scaled_dot_product_attention(q, k, k)

    return call
