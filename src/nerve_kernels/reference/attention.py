"""The definition of stage 1, and of what one look at the scores gives."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nerve_kernels.grids import window_neighbours

from .grids import cell_average


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
