"""The layers that the functions of stage 2 are given, one or a list of them: their checks, and what they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ._operators.checks import (
    ONE_OR_MANY,
    check_cells,
    check_grid,
    check_list,
    check_queries_and_keys,
    check_scale,
    check_tokens,
    refusal,
)
from .grids import Grid, default_cells


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer whose arguments have been checked."""

    q: Tensor
    k: Tensor
    grid: Grid
    scale: float


def one_or_many(value: Tensor | Sequence[Tensor] | None, name: str, layers: int) -> list[Tensor | None]:
    """What was given for each of the layers: a tensor for one, a list for several, or nothing for any."""
    if value is None:
        return [None] * layers
    found = [value] if isinstance(value, Tensor) else check_list(name, value, ONE_OR_MANY)
    return check_list(name, found, f"{layers} tensors, one for each layer of q", length=layers)


def layer_prefix(given: Tensor | Sequence[Tensor], index: int) -> str:
    """What a message about one of several layers begins with."""
    return "" if isinstance(given, Tensor) else f"layer {index}: "


def check_layers(
    q: Tensor | Sequence[Tensor],
    k: Tensor | Sequence[Tensor],
    grid: Grid | None,
    grids: Sequence[Grid] | None,
    scale: float | None,
) -> tuple[list[AttentionLayer], Grid]:
    """The checked layers and the grid of the affinity: the one asked for, or the finest."""
    single = isinstance(q, Tensor)
    if single and grids is not None:
        raise ValueError(refusal("grids", "None where q is one layer", repr(grids), "give grid=(H, W)"))
    queries = [q] if isinstance(q, Tensor) else check_list("q", q, ONE_OR_MANY)
    if not queries:
        raise ValueError(refusal("q", "at least one layer", "an empty list"))
    given = _layer_grids(grid, grids, len(queries), single=single)
    finest = max(given, key=lambda g: g[0] * g[1])
    target = finest if grid is None else check_grid("grid", grid)
    layers = []
    for index, (layer_q, layer_k) in enumerate(zip(queries, one_or_many(k, "k", len(queries)), strict=True)):
        prefix = layer_prefix(q, index)
        check_queries_and_keys(layer_q, layer_k, prefix)
        assert layer_k is not None
        check_tokens(f"{prefix}grid", given[index], layer_q.shape[2], "q")
        check_tokens(f"{prefix}grid", given[index], layer_k.shape[2], "k")
        layers.append(AttentionLayer(layer_q, layer_k, given[index], check_scale(scale, layer_q.shape[3])))
    batches = {layer.q.shape[0] for layer in layers}
    if len(batches) > 1:
        raise ValueError(refusal("q", "one batch size in all layers", sorted(batches)))
    return layers, target


def _layer_grids(grid: Grid | None, grids: Sequence[Grid] | None, layers: int, *, single: bool) -> list[Grid]:
    if single:
        if grid is None:
            raise ValueError(refusal("grid", "(H, W) of the tokens", None))
        return [check_grid("grid", grid)]
    wanted = f"{layers} pairs (H, W), one for each layer of q"
    if grids is None:
        raise ValueError(refusal("grids", wanted, None))
    found = check_list("grids", grids, wanted, length=layers)
    return [check_grid(f"grids[{index}]", item) for index, item in enumerate(found)]


def refuse_finer(index: int, layer: Grid, grid: Grid) -> None:
    """Raise where a layer is finer than the grid of a local affinity."""
    if layer[0] > grid[0] or layer[1] > grid[1]:
        wanted = f"a grid no finer than that of the affinity, {grid}, whose windows need keys on it or on a coarser one"
        raise ValueError(refusal(f"grids[{index}]", wanted, layer, "leave the layer out or ask for the finest grid"))


def common_cells(cells: int | Grid | None, grids: Sequence[Grid], target: Grid) -> Grid:
    """The cells that every layer's keys and the affinity's tokens are cut into."""
    smallest = min(grid[0] for grid in (*grids, target)), min(grid[1] for grid in (*grids, target))
    return default_cells(smallest) if cells is None else check_cells(cells, smallest)
