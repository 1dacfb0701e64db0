"""Stage 2: the graph of each token's nearest neighbours by features, without N × N numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nerve_kernels._operators import walk as operators
from nerve_kernels._operators.checks import (
    check_choice,
    check_count,
    check_flag,
    check_number,
    check_same_device,
    check_shape,
    check_tensor,
    refusal,
)
from nerve_kernels._operators.library import accumulation_dtype
from nerve_kernels._operators.walk.graph import sum_by_row
from nerve_kernels._operators.walk.nearest_neighbours import add_transpose_entries

from .graph import GraphAffinity

BLOCK_NUMBERS = 2**24
"""Inner products that are held at a time: 64 MiB in float32."""


def knn_affinity(
    features: Tensor,
    k: int,
    *,
    power: float = 1.0,
    positions: Tensor | None = None,
    distance_scale: float = 0.0,
    distance_power: float = 1,
    symmetric: bool = True,
    normalize: str = "row",
) -> GraphAffinity:
    """The graph of each token's k nearest neighbours by the inner product of features.

    ``W[i, j] = max(0, fᵢ · fⱼ)^power · exp(−distance_scale · ‖xᵢ − xⱼ‖^distance_power)`` for j among the k largest
    fᵢ · fⱼ, j ≠ i; then W ← W + Wᵀ; then D⁻¹ W or D^−½ W D^−½, D the row sums

    Args:
        features: f, (B, N, d), float32, float16, bfloat16 or float64. Of length 1 where cosines are wanted.
        k: Neighbours a token, from 1 to N; a token that is among its own is dropped, and of equals those of lower index
            are taken.
        power: Exponent ≥ 0 of the inner products.
        positions: x, (B, N, 2) or (N, 2), in any unit, where ``distance_scale`` is not 0.
        distance_scale: σ ≥ 0, in the unit of ``positions`` to the power −``distance_power``.
        distance_power: Exponent > 0 of the distance.
        symmetric: Add the transpose: each neighbour sees back.
        normalize: ``"row"``, so that rows sum to 1; ``"symmetric"``, which needs ``symmetric``; ``"none"``.

    Returns:
        :class:`GraphAffinity` in float32 (float64 for such features), columns of a row in order. A token to which no
        weight leads has an empty row.

    Raises:
        TypeError, ValueError: for a bad argument, named.

    Source: LPOSS, arXiv 2503.19777, equations of its affinity; streamed in blocks of rows here.

    Example:
        >>> import torch, nerve_kernels as nk
        >>> S = nk.knn_affinity(torch.tensor([[[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]]), 2)
        >>> [round(value, 3) for value in S.to_dense()[0, 0].tolist()]
        [0.0, 1.0, 0.0]
    """
    check_tensor("features", features, 3, "(B, N, d)")
    batch, tokens, _ = features.shape
    check_count("k", k, low=1, high=max(1, tokens), wanted=f"from 1 to N = {tokens}")
    power = check_number("power", power, low=0, high=math.inf, wanted="≥ 0")
    sigma = check_number("distance_scale", distance_scale, low=0, high=math.inf, wanted="≥ 0")
    exponent = check_number("distance_power", distance_power, low=0, high=math.inf, low_open=True, wanted="> 0")
    check_choice("normalize", normalize, ("row", "symmetric", "none"))
    if not check_flag("symmetric", symmetric) and normalize == "symmetric":
        raise ValueError(refusal("normalize", "'row' or 'none' where symmetric is False", repr(normalize)))
    if positions is None and sigma:
        raise ValueError(refusal("positions", "(B, N, 2) where distance_scale is not 0", None))
    if positions is not None:
        positions = positions.unsqueeze(0) if isinstance(positions, Tensor) and positions.dim() == 2 else positions
        check_tensor("positions", positions, 3, "(B, N, 2) or (N, 2)")
        check_shape("positions", positions, (positions.shape[0], tokens, positions.shape[2]), "(B, N, 2) of features")
        check_same_device(features=features, positions=positions)
        positions = positions.to(features.device).expand(batch, -1, -1)
    dtype = accumulation_dtype(features)
    graphs = []
    for image in range(batch):
        columns, weights = _nearest(features[image].to(dtype), k)
        linked = weights > 0
        weights = weights if power == 1 else weights.pow(power)
        if positions is not None and sigma:
            where = positions[image].to(dtype)
            distance = torch.linalg.vector_norm(where[:, None] - where[columns], dim=2)
            weights = weights * torch.exp(-sigma * distance.pow(exponent))
        graphs.append(_as_rows(columns, torch.where(linked, weights, 0), symmetric, normalize))
    most = max((len(columns) for _, columns, _ in graphs), default=0)

    def filled(part: Tensor) -> Tensor:
        return torch.nn.functional.pad(part, (0, most - len(part)))

    pointers, targets, values = zip(*graphs, strict=True)
    return GraphAffinity(
        torch.stack(pointers),
        torch.stack([filled(part) for part in targets]),
        torch.stack([filled(part) for part in values]),
        symmetric=normalize == "symmetric",
    )


def _nearest(features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(columns, products) of each token's k nearest, (N, k), ascending; 0 for itself and for what is below 0."""
    tokens = features.shape[0]
    found = []
    step = max(1, BLOCK_NUMBERS // max(1, tokens))
    for start in range(0, tokens, step):
        products = features[start : start + step] @ features.transpose(0, 1)
        columns = operators.nearest_columns(products.detach(), k)
        itself = torch.arange(start, start + products.shape[0], device=features.device)[:, None] == columns
        found.append((columns, products.gather(1, columns.long()).masked_fill(itself, 0).clamp(min=0)))
    columns, weights = (torch.cat(parts) for parts in zip(*found, strict=True))
    return columns, weights


def _as_rows(columns: Tensor, weights: Tensor, symmetric: bool, normalize: str) -> tuple[Tensor, Tensor, Tensor]:
    """(row pointers, columns, values) of the graph of (N, k) entries, of which those of weight 0 count for nothing."""
    tokens = len(columns)
    if symmetric and not weights.requires_grad:
        pointers, targets, values = operators.add_transpose(columns, weights)
        entries = int(pointers[-1])
        targets, values = targets[:entries], values[:entries]
        rows = torch.repeat_interleave(
            torch.arange(tokens, device=columns.device), pointers.diff(), output_size=entries
        )
        return pointers, targets, _normalized(rows, targets, values, tokens, normalize)
    used = weights != 0
    rows = torch.arange(tokens, device=columns.device)[:, None].expand_as(columns)[used]
    targets, values = columns[used].long(), weights[used]
    if symmetric:
        rows, targets, values = add_transpose_entries(rows, targets, values, tokens)
    ends = torch.searchsorted(rows, torch.arange(1, tokens + 1, device=rows.device))
    values = _normalized(rows, targets, values, tokens, normalize)
    return torch.cat([ends.new_zeros(1), ends]), targets.to(torch.int32), values


def _normalized(rows: Tensor, columns: Tensor, weights: Tensor, tokens: int, normalize: str) -> Tensor:
    if normalize == "none":
        return weights
    degree = sum_by_row(weights.unsqueeze(1), rows, weights.new_zeros(tokens, 1)).squeeze(1)
    if normalize == "row":
        return weights / degree[rows]
    root = degree.clamp(min=torch.finfo(degree.dtype).tiny).rsqrt()
    return weights * root[rows] * root[columns]
