"""Stage 2, from q and k: the local and the global affinity of one or several attention layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._operators import attention as operators
from ._operators.attention.local_affinity import normalize_window_rows
from ._operators.checks import (
    ONE_OR_MANY,
    check_backend,
    check_cells,
    check_grid,
    check_head_weights,
    check_list,
    check_queries_and_keys,
    check_scale,
    check_tokens,
    check_window,
    refusal,
)
from .affinity import LocalAffinity, LowRankAffinity
from .attention import lse_or_compute
from .grids import Grid, bilinear_corners, cell_of_token, default_cells, window_neighbours


@dataclass(frozen=True)
class _Layer:
    """One attention layer whose arguments have been checked."""

    q: Tensor
    k: Tensor
    w: Tensor
    lse: Tensor
    grid: Grid
    scale: float


def one_or_many(value: Tensor | Sequence[Tensor] | None, name: str, layers: int) -> list[Tensor | None]:
    """What was given for each of the layers: a tensor for one, a list for several, or nothing for any."""
    if value is None:
        return [None] * layers
    found = [value] if isinstance(value, Tensor) else check_list(name, value, ONE_OR_MANY)
    return check_list(name, found, f"{layers} tensors, one for each layer of q", length=layers)


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
    single = isinstance(q, Tensor)
    queries, given, target = layer_grids(q, grid, grids)
    layers = []
    for index, (layer_q, layer_k, layer_w, layer_lse) in enumerate(
        zip(
            queries,
            one_or_many(k, "k", len(queries)),
            one_or_many(w, "w", len(queries)),
            one_or_many(lse, "lse", len(queries)),
            strict=True,
        )
    ):
        prefix = "" if single else f"layer {index}: "
        check_queries_and_keys(layer_q, layer_k, prefix)
        assert layer_k is not None
        check_head_weights(layer_w, layer_q, prefix)
        assert layer_w is not None
        check_tokens(f"{prefix}grid", given[index], layer_q.shape[2], "q")
        check_tokens(f"{prefix}grid", given[index], layer_k.shape[2], "k")
        layer_scale = check_scale(scale, layer_q.shape[3])
        layer_lse = lse_or_compute(layer_q, layer_k, layer_lse, layer_scale, backend, prefix)
        layers.append(_Layer(layer_q, layer_k, layer_w, layer_lse, given[index], layer_scale))
    batches = {layer.q.shape[0] for layer in layers}
    if len(batches) > 1:
        raise ValueError(refusal("q", "one batch size in all layers", sorted(batches)))
    return layers, target


def layer_grids(
    q: Tensor | Sequence[Tensor], grid: Grid | None, grids: Sequence[Grid] | None
) -> tuple[list[Tensor], list[Grid], Grid]:
    """The queries and the grid of each layer, and the grid of the affinity: the one asked for, or the finest."""
    single = isinstance(q, Tensor)
    if single and grids is not None:
        raise ValueError(refusal("grids", "None where q is one layer", repr(grids), "give grid=(H, W)"))
    queries = [q] if isinstance(q, Tensor) else check_list("q", q, ONE_OR_MANY)
    if not queries:
        raise ValueError(refusal("q", "at least one layer", "an empty list"))
    given = _given_grids(grid, grids, len(queries), single=single)
    finest = max(given, key=lambda g: g[0] * g[1])
    return queries, given, finest if grid is None else check_grid("grid", grid)


def _given_grids(grid: Grid | None, grids: Sequence[Grid] | None, layers: int, *, single: bool) -> list[Grid]:
    if single:
        if grid is None:
            raise ValueError(refusal("grid", "(H, W) of the tokens", None))
        return [check_grid("grid", grid)]
    wanted = f"{layers} pairs (H, W), one for each layer of q"
    if grids is None:
        raise ValueError(refusal("grids", wanted, None))
    found = check_list("grids", grids, wanted, length=layers)
    return [check_grid(f"grids[{index}]", item) for index, item in enumerate(found)]


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
    if layer.grid[0] > grid[0] or layer.grid[1] > grid[1]:
        wanted = f"a grid no finer than that of the affinity, {grid}, whose windows need keys on it or on a coarser one"
        raise ValueError(
            refusal(f"grids[{index}]", wanted, layer.grid, "leave the layer out or ask for the finest grid")
        )
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
    smallest = min(layer.grid[0] for layer in layers), min(layer.grid[1] for layer in layers)
    smallest = min(smallest[0], target[0]), min(smallest[1], target[1])
    pair = default_cells(smallest) if cells is None else check_cells(cells, smallest)
    u: Tensor | None = None
    for layer in layers:
        part = operators.global_affinity(layer.q, layer.k, layer.w, layer.lse, layer.grid, pair, layer.scale, backend)
        if layer.grid != target:
            corners = bilinear_corners(layer.grid, target, part.device)
            part = sum(part[:, corner] * weight.to(part.dtype)[:, None] for corner, weight in corners)
        u = part if u is None else u + part
    assert u is not None
    return LowRankAffinity(u, grid=target, cells=pair)
