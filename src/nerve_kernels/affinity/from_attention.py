"""Stage 2, from q and k: the local and the global affinity of one or several attention layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nerve_kernels._operators import attention as operators
from nerve_kernels._operators.attention.local_affinity import normalize_window_rows
from nerve_kernels._operators.checks import check_backend, check_head_weights, check_window
from nerve_kernels.attention import lse_or_compute
from nerve_kernels.attention_layers import (
    AttentionLayer,
    check_layers,
    common_cells,
    layer_prefix,
    one_or_many,
    refuse_finer,
)
from nerve_kernels.grids import Grid, bilinear_corners, cell_of_token, window_neighbours
from nerve_kernels.layers_on_grid import blend_rows

from .local import LocalAffinity
from .low_rank import LowRankAffinity


@dataclass(frozen=True)
class _Layer(AttentionLayer):
    """One layer with the weights of its heads and the statistics of its rows."""

    w: Tensor
    lse: Tensor


def _layers(
    q: Tensor | Sequence[Tensor],
    k: Tensor | Sequence[Tensor],
    w: Tensor | Sequence[Tensor],
    grid: Grid | None,
    grids: Sequence[Grid] | None,
    scale: float | None,
    lse: Tensor | Sequence[Tensor] | None,
    backend: str | None,
) -> tuple[list[_Layer], Grid]:
    """The checked layers and the grid of the affinity: the one asked for, or the finest."""
    check_backend(backend)
    found, target = check_layers(q, k, grid, grids, scale)
    weights, lses = one_or_many(w, "w", len(found)), one_or_many(lse, "lse", len(found))
    layers = []
    for index, (layer, layer_w, layer_lse) in enumerate(zip(found, weights, lses, strict=True)):
        prefix = layer_prefix(q, index)
        check_head_weights(layer_w, layer.q, prefix)
        assert layer_w is not None
        known = lse_or_compute(layer.q, layer.k, layer_lse, layer.scale, backend, prefix)
        layers.append(_Layer(layer.q, layer.k, layer.grid, layer.scale, layer_w, known))
    return layers, target


def local_affinity(
    q: Tensor | Sequence[Tensor],
    k: Tensor | Sequence[Tensor],
    w: Tensor | Sequence[Tensor],
    *,
    grid: Grid | None = None,
    window: int | Grid = 7,
    grids: Sequence[Grid] | None = None,
    scale: float | None = None,
    lse: Tensor | Sequence[Tensor] | None = None,
    backend: str | None = None,
) -> LocalAffinity:
    """Attention of each token to the window around it, rows renormalised, without the attention map.

    ``values[i, o] ∝ Σ_h w_h A⁽ʰ⁾[i, i+o]`` for the offsets o of the window that lie on the grid, each row divided by
    its sum. A row whose window holds no mass (less than the smallest normal float32: everything went to a far sink)
    becomes the identity.

    Args:
        q: Queries (B, heads, N, d), or a list, one for each layer; float32, float16, bfloat16 or float64, any strides.
        k: Keys, as ``q``.
        w: Head weights (B, heads), or a list, from :func:`head_weights`.
        grid: (H, W) with H·W = N. For lists, the grid of the result; ``None`` means the finest of ``grids``.
        window: Odd int or pair of odd ints, at most 2 · side − 1.
        grids: For lists, (H, W) of each layer. A coarser layer's queries are brought to ``grid`` bilinearly, and each
            of its keys shares its attention equally among the tokens it covers; a finer layer is refused.
        scale: Factor of the scores; ``None`` means 1/√d of each layer.
        lse: (B, heads, N) from :func:`attention_entropy`, or a list; ``None`` computes it.
        backend: ``None`` chooses; a named backend runs or raises.

    Returns:
        :class:`LocalAffinity` with values (B, N, kh·kw) in float32 (float64 for float64 inputs), rows sum to 1.

    Raises:
        TypeError, ValueError: for a bad argument, named.
        BackendUnavailableError: where a named backend cannot run, with the reason.

    Source: NERVE, arXiv 2511.08248, S_local; truncation at the border and the identity row are ours.

    Example:
        >>> import torch, nerve_kernels as nk
        >>> q = torch.zeros(1, 2, 12, 4)  # uniform attention
        >>> S = nk.local_affinity(q, q, torch.tensor([[0.5, 0.5]]), grid=(3, 4), window=3)
        >>> round(S.values[0, 5, 0].item(), 6)  # an inner token: 9 neighbours
        0.111111
    """
    layers, target = _layers(q, k, w, grid, grids, scale, lse, backend)
    pair = check_window(window, target)
    if len(layers) == 1 and layers[0].grid == target:
        values = _window_attention(layers[0], layers[0].q, layers[0].k, layers[0].lse, target, pair, True, backend)
        return LocalAffinity(values, grid=target, window=pair)
    total = sum(_window_sums(layer, index, target, pair, backend) for index, layer in enumerate(layers))
    assert isinstance(total, Tensor)
    return LocalAffinity(normalize_window_rows(total), grid=target, window=pair)


def _window_attention(
    layer: _Layer, q: Tensor, k: Tensor, lse: Tensor, grid: Grid, window: Grid, normalize: bool, backend: str | None
) -> Tensor:
    return operators.local_affinity(q, k, layer.w, lse, grid, window, layer.scale, normalize, backend)


def _window_sums(layer: _Layer, index: int, grid: Grid, window: Grid, backend: str | None) -> Tensor:
    """One layer's share of the window sums on ``grid``, (B, N, kh·kw)."""
    if layer.grid == grid:
        return _window_attention(layer, layer.q, layer.k, layer.lse, grid, window, False, backend)
    refuse_finer(index, layer.grid, grid)
    device = layer.q.device
    cell = cell_of_token(grid, layer.grid, device)
    keys = layer.k[:, :, cell]
    share = 1 / torch.bincount(cell, minlength=layer.k.shape[2]).to(layer.lse.dtype)
    neighbour, _ = window_neighbours(grid, window, device)
    key_share = share[cell][neighbour]
    total: Tensor | None = None
    for corner, weight in bilinear_corners(layer.grid, grid, device):
        sums = _window_attention(
            layer, layer.q[:, :, corner], keys, layer.lse[:, :, corner], grid, window, False, backend
        )
        part = sums * (key_share * weight.to(sums.dtype)[:, None])
        total = part if total is None else total + part
    assert total is not None
    return total


def global_affinity(
    q: Tensor | Sequence[Tensor],
    k: Tensor | Sequence[Tensor],
    w: Tensor | Sequence[Tensor],
    *,
    grid: Grid | None = None,
    cells: int | Grid | None = None,
    grids: Sequence[Grid] | None = None,
    scale: float | None = None,
    lse: Tensor | Sequence[Tensor] | None = None,
    backend: str | None = None,
) -> LowRankAffinity:
    """Attention of each token to each cell of the grid: the fused map with its columns aggregated, of rank ≤ M.

    ``U[i, m] = Σ_{j in cell m} Σ_h w_h A⁽ʰ⁾[i, j]``, and V averages over a cell's tokens, so that
    ``(S_global P)ᵢ = Σ_m U[i, m] · mean_{j in cell m} Pⱼ`` (Markov-chain aggregation: exact for P constant on cells).

    Args:
        q: Queries (B, heads, N, d), or a list, one for each layer; float32, float16, bfloat16 or float64, any strides.
        k: Keys, as ``q``.
        w: Head weights (B, heads), or a list, from :func:`head_weights`.
        grid: (H, W) with H·W = N. For lists, the grid of the result; ``None`` means the finest of ``grids``.
        cells: (h, w), an int for both, or ``None`` for min(16, smallest side of any layer) along each side. Cell row a
            covers grid rows ⌊aH/h⌋ … ⌊(a+1)H/h⌋−1.
        grids: For lists, (H, W) of each layer: its keys are pooled to the common cells and its queries brought to
            ``grid`` bilinearly.
        scale: Factor of the scores; ``None`` means 1/√d of each layer.
        lse: (B, heads, N) from :func:`attention_entropy`, or a list; ``None`` computes it.
        backend: ``None`` chooses; a named backend runs or raises.

    Returns:
        :class:`LowRankAffinity` with u (B, N, h·w) in float32 (float64 for float64 inputs); rows sum to Σ w, which is 1
        for weights from :func:`head_weights`.

    Raises:
        TypeError, ValueError: for a bad argument, named.
        BackendUnavailableError: where a named backend cannot run, with the reason.

    Source: NERVE, arXiv 2511.08248, S_global (low rank); the aggregation over cells is ours.

    Example:
        >>> import torch, nerve_kernels as nk
        >>> q = torch.zeros(1, 2, 12, 4)  # uniform attention
        >>> S = nk.global_affinity(q, q, torch.tensor([[0.5, 0.5]]), grid=(3, 4), cells=(1, 2))
        >>> [round(value, 6) for value in S.u[0, 0].tolist()]
        [0.5, 0.5]
    """
    layers, target = _layers(q, k, w, grid, grids, scale, lse, backend)
    pair = common_cells(cells, [layer.grid for layer in layers], target)
    u: Tensor | None = None
    for layer in layers:
        part = operators.global_affinity(layer.q, layer.k, layer.w, layer.lse, layer.grid, pair, layer.scale, backend)
        part = blend_rows(part, layer.grid, target)
        u = part if u is None else u + part
    assert u is not None
    return LowRankAffinity(u, grid=target, cells=pair)
