"""The definition of every operation: dense, float64, one formula after the other.

Nothing here is fast and nothing here is clever. Each function is a transcription of the method's formula on whole
matrices, on whatever inputs it is given, cast to float64 first. Every backend is tested against these functions, and
where a backend and this file disagree, the backend is wrong. Affinities come back as dense (B, N, N) matrices.

Source: NERVE, arXiv 2511.08248; what the paper leaves open is marked "ours" in the public functions' docstrings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .grids import bilinear_corners, cell_of_token, window_neighbours

WINDOW_MASS_FLOOR = torch.finfo(torch.float32).tiny
"""A row whose window holds less attention than this (smallest normal float32) has no usable window: identity."""

__all__ = [
    "attention",
    "attention_entropy",
    "attention_map_entropy",
    "attention_marginal",
    "attention_statistics",
    "best_labels",
    "cell_average",
    "fuse_attention",
    "fuse_attention_maps",
    "global_affinity",
    "head_weights",
    "local_affinity",
    "low_rank_to_dense",
    "mix",
    "query_resampling",
    "random_walk",
    "random_walk_limit",
    "window_to_dense",
]


def attention(q: Tensor, k: Tensor, *, scale: float | None = None) -> Tensor:
    """A = softmax(scale · q kᵀ) over keys, (B, heads, N, N_k); scale defaults to 1/√d."""
    q, k = q.double(), k.double()
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return (scale * (q @ k.transpose(-1, -2))).softmax(-1)


def attention_entropy(
    q: Tensor, k: Tensor, *, scale: float | None = None, return_lse: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """𝓗ᵢ = −Σⱼ Aᵢⱼ log Aᵢⱼ (0·log 0 = 0), (B, heads, N), in nats; lseᵢ = log Σⱼ exp(scale · qᵢ·kⱼ) beside it."""
    entropy = torch.special.entr(attention(q, k, scale=scale)).sum(-1)
    if not return_lse:
        return entropy
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return entropy, (scale * (q.double() @ k.double().transpose(-1, -2))).logsumexp(-1)


def attention_marginal(q: Tensor, k: Tensor, *, scale: float | None = None) -> Tensor:
    """mⱼ = (1/N) Σᵢ Aᵢⱼ, (B, heads, N_k)."""
    return attention(q, k, scale=scale).mean(-2)


def attention_statistics(
    q: Tensor,
    k: Tensor,
    *,
    grid: tuple[int, int],
    window: tuple[int, int],
    cells: tuple[int, int],
    scale: float | None = None,
    global_sharpness: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(𝓗, lse, local, pooled): A on each token's window, 0 outside the grid, and softmax(γ · scores) summed by cell."""
    entropy, lse = attention_entropy(q, k, scale=scale, return_lse=True)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    neighbour, inside = window_neighbours(grid, window)
    every = attention(q, k, scale=scale)
    local = every.gather(-1, neighbour.to(q.device).expand(*every.shape[:2], -1, -1)) * inside.to(q.device)
    membership = (cell_average(grid, cells) > 0).double().to(q.device)
    return entropy, lse, local, attention(q, k, scale=scale * global_sharpness) @ membership


def attention_map_entropy(maps: Tensor) -> Tensor:
    """𝓗ᵢ = −Σⱼ Aᵢⱼ log Aᵢⱼ of explicit maps (B, heads, N, N_k) -> (B, heads, N)."""
    return torch.special.entr(maps.double()).sum(-1)


def head_weights(
    entropy: Tensor | Sequence[Tensor],
    *,
    num_keys: int | Sequence[int],
    temperature: float = 0.1,
    criterion: str = "entropy",
    marginal: Tensor | Sequence[Tensor] | None = None,
    keep: int | None = None,
) -> Tensor | list[Tensor]:
    """w = softmax over heads and layers of −mean 𝓗/(τ log N_k), or of I/(τ log N_k) with I = H(marginal) − mean 𝓗.

    ``"uniform"``: of 0. ``keep``: only heads that fewer than ``keep`` others precede, by being better or as good and
    before.
    """
    single = isinstance(entropy, Tensor)
    entropies = [entropy] if isinstance(entropy, Tensor) else list(entropy)
    keys = [num_keys] if isinstance(num_keys, int) else list(num_keys)
    marginals: list[Tensor | None] = [marginal] if isinstance(marginal, Tensor) else list(marginal or [])
    marginals = marginals or [None] * len(entropies)
    scores = []
    for layer_entropy, layer_keys, layer_marginal in zip(entropies, keys, marginals, strict=True):
        mean_entropy = layer_entropy.double().mean(-1)
        if criterion == "information":
            assert layer_marginal is not None
            score = torch.special.entr(layer_marginal.double()).sum(-1) - mean_entropy
        else:
            score = -mean_entropy
        # one key: every head says the same nothing, so all get the same score
        says_nothing = layer_keys == 1 or criterion == "uniform"
        scores.append(torch.zeros_like(score) if says_nothing else score / math.log(layer_keys))
    stacked = torch.cat(scores, dim=1)
    if keep is not None:
        one, other = stacked.unsqueeze(2), stacked.unsqueeze(1)
        before = torch.ones(stacked.shape[1], stacked.shape[1], dtype=torch.bool, device=stacked.device).tril(-1)
        preceding = ((other > one) | ((other == one) & before)).sum(2)
        stacked = stacked.masked_fill(preceding >= keep, -math.inf)
    weights = (stacked / temperature).softmax(1).split([score.shape[1] for score in scores], dim=1)
    return weights[0] if single else list(weights)


def fuse_attention(q: Tensor, k: Tensor, w: Tensor, *, scale: float | None = None) -> Tensor:
    """A_w = Σ_h w_h A⁽ʰ⁾, (B, N, N_k)."""
    return fuse_attention_maps(attention(q, k, scale=scale), w)


def fuse_attention_maps(maps: Tensor, w: Tensor) -> Tensor:
    """A_w = Σ_h w_h A⁽ʰ⁾ of explicit maps, (B, N, N_k)."""
    return torch.einsum("bh,bhij->bij", w.double(), maps.double())


def query_resampling(source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """R (N_target, N_source): bilinear resampling of token rows, half-pixel centres, rows sum to 1."""
    matrix = torch.zeros(target[0] * target[1], source[0] * source[1], dtype=torch.float64)
    rows = torch.arange(matrix.shape[0])
    for index, weight in bilinear_corners(source, target):
        matrix.index_put_((rows, index), weight.double(), accumulate=True)
    return matrix


def cell_average(grid: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """V (N, M): V[j, m] = 1/|cell m| where token j lies in cell m; columns sum to 1."""
    membership = torch.nn.functional.one_hot(cell_of_token(grid, cells), cells[0] * cells[1]).double()
    return membership / membership.sum(0)


def _layers_on_grid(
    q: Tensor | Sequence[Tensor],
    k: Tensor | Sequence[Tensor],
    w: Tensor | Sequence[Tensor],
    grid: tuple[int, int],
    grids: Sequence[tuple[int, int]] | None,
    scale: float | None,
) -> list[tuple[Tensor, tuple[int, int]]]:
    """Each layer's fused map with its queries on ``grid``: (B, N, N_k of the layer), and the layer's own grid."""
    if isinstance(q, Tensor):
        assert isinstance(k, Tensor)
        assert isinstance(w, Tensor)
        return [(fuse_attention(q, k, w, scale=scale), grid)]
    assert grids is not None
    layers = []
    for layer_q, layer_k, layer_w, layer_grid in zip(q, k, w, grids, strict=True):
        fused = fuse_attention(layer_q, layer_k, layer_w, scale=scale)
        layers.append((query_resampling(layer_grid, grid).to(fused.device) @ fused, layer_grid))
    return layers


def local_affinity(
    q: Tensor | Sequence[Tensor],
    k: Tensor | Sequence[Tensor],
    w: Tensor | Sequence[Tensor],
    *,
    grid: tuple[int, int],
    window: tuple[int, int],
    grids: Sequence[tuple[int, int]] | None = None,
    scale: float | None = None,
) -> Tensor:
    """S_local (B, N, N): A_w inside the window, rows renormalised; a row with no mass there becomes the identity.

    A coarser layer's key gives its attention in equal shares to the tokens of ``grid`` that it covers.
    """
    total = torch.zeros(())
    for fused, layer_grid in _layers_on_grid(q, k, w, grid, grids, scale):
        spread = cell_average(grid, layer_grid).to(fused.device)
        total = total.to(fused.device) + fused @ spread.transpose(0, 1)
    return _window_rows(total, grid, window)


def _window_rows(attention_map: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    neighbour, inside = window_neighbours(grid, window)
    mask = torch.zeros(attention_map.shape[-2:], dtype=torch.bool)
    mask[torch.arange(mask.shape[0])[:, None].expand_as(neighbour)[inside], neighbour[inside]] = True
    kept = attention_map * mask.to(attention_map.device)
    mass = kept.sum(-1, keepdim=True)
    identity = torch.eye(mask.shape[0], dtype=kept.dtype, device=kept.device)
    return torch.where(mass < WINDOW_MASS_FLOOR, identity, kept / mass)


def global_affinity(
    q: Tensor | Sequence[Tensor],
    k: Tensor | Sequence[Tensor],
    w: Tensor | Sequence[Tensor],
    *,
    grid: tuple[int, int],
    cells: tuple[int, int],
    grids: Sequence[tuple[int, int]] | None = None,
    scale: float | None = None,
) -> Tensor:
    """S_global = U Vᵀ (B, N, N): U[i, m] = Σ_{j in cell m} A_w[i, j], V the average over a cell's tokens."""
    u = torch.zeros(())
    for fused, layer_grid in _layers_on_grid(q, k, w, grid, grids, scale):
        membership = (cell_average(layer_grid, cells) > 0).double().to(fused.device)
        u = u.to(fused.device) + fused @ membership
    return u @ cell_average(grid, cells).to(u.device).transpose(0, 1)


def window_to_dense(values: Tensor, *, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """S (B, N, N) of window values (B, N, kh·kw); entries outside the grid are ignored."""
    neighbour, inside = window_neighbours(grid, window)
    dense = torch.zeros(*values.shape[:2], values.shape[1], dtype=torch.float64)
    rows = torch.arange(values.shape[1])[:, None].expand_as(neighbour)
    dense[:, rows[inside], neighbour[inside]] = values.detach().double().cpu()[:, inside]
    return dense.to(values.device)


def low_rank_to_dense(
    u: Tensor, v: Tensor | None, *, grid: tuple[int, int], cells: tuple[int, int] | None = None
) -> Tensor:
    """S = U Vᵀ (B, N, N); with ``cells`` V is the average over cells."""
    right = cell_average(grid, cells).to(u.device).expand(u.shape[0], -1, -1) if cells is not None else v
    assert right is not None
    return u.double() @ right.double().transpose(-1, -2)


def mix(s_global: Tensor, s_local: Tensor, beta: float) -> Tensor:
    """S = β S_global + (1−β) S_local."""
    return beta * s_global.double() + (1 - beta) * s_local.double()


def random_walk(seeds: Tensor, affinity: Tensor, *, alpha: float, steps: int, normalize: bool = True) -> Tensor:
    """P₀ = G; P_l = (1−α) G + α S P_{l−1}; after L steps each row is divided by its sum (a zero row stays zero)."""
    seeds, affinity = seeds.double(), affinity.double()
    p = seeds
    for _ in range(steps):
        p = (1 - alpha) * seeds + alpha * (affinity @ p)
    if not normalize:
        return p
    total = p.sum(-1, keepdim=True)
    return p / torch.where(total == 0, 1, total)


def random_walk_limit(seeds: Tensor, affinity: Tensor, *, alpha: float) -> Tensor:
    """P_∞ = (1−α)(I − αS)⁻¹ G."""
    seeds, affinity = seeds.double(), affinity.double()
    identity = torch.eye(affinity.shape[-1], dtype=torch.float64, device=affinity.device)
    return torch.linalg.solve(identity - alpha * affinity, (1 - alpha) * seeds)


def best_labels(planes: Tensor, *, size: tuple[int, int], threshold: float, fallback: int) -> Tensor:
    """argmax_c of planes (B, C, h, w) brought to (H, W) bilinearly, (B, H, W); fallback where the best < threshold."""
    resampling = query_resampling((planes.shape[2], planes.shape[3]), size).to(planes.device)
    values = planes.double().flatten(2) @ resampling.transpose(0, 1)
    best, label = values.max(1)
    return torch.where(best < threshold, fallback, label).unflatten(1, size)
