"""Random calls of stage 2, right and wrong, against the reference."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.fuzz.judging import FUZZ, backends, dtypes, judge, probabilities, small, spoilt, tensor

import nerve_kernels as nk
from nerve_kernels import reference
from nerve_kernels.grids import default_cells
from nerve_kernels.reference.from_attention import _window_rows

Grid = tuple[int, int]
sides = st.one_of(st.integers(1, 6), st.sampled_from([9, 13]))
grids = st.tuples(sides, sides)


def pair(value: Any) -> Grid:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def rounding_of(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@st.composite
def window_for(draw: st.DrawFn, grid: Grid) -> int | Grid:
    sizes = tuple(2 * draw(st.integers(0, min(side - 1, 4))) + 1 for side in grid)
    return draw(st.sampled_from([sizes, min(sizes)]))


@st.composite
def cells_for(draw: st.DrawFn, grid: Grid) -> int | Grid:
    counts = tuple(draw(st.integers(1, side)) for side in grid)
    return draw(st.sampled_from([counts, min(counts)]))


@st.composite
def layer_calls(draw: st.DrawFn, *, local: bool) -> tuple[dict[str, Any], bool, torch.dtype]:
    """One layer or a list of them, on grids no finer than the first."""
    dtype, batch, grid = draw(dtypes), draw(st.integers(1, 2)), draw(grids)
    layer_grids = [grid]
    for _ in range(draw(st.integers(0, 2))):
        layer_grids.append((draw(st.integers(1, grid[0])), draw(st.integers(1, grid[1]))))
    q, k, w = [], [], []
    for layer_grid in layer_grids:
        shape = (batch, draw(st.integers(1, 3)), layer_grid[0] * layer_grid[1], draw(st.sampled_from([1, 3, 8])))
        q.append(tensor(draw, shape, dtype))
        k.append(tensor(draw, shape, dtype))
        w.append(probabilities(draw, shape[:2], dtype))
    arguments: dict[str, Any] = {"q": q, "k": k, "w": w, "grid": grid, "grids": layer_grids}
    if len(layer_grids) == 1 and draw(st.booleans()):
        arguments = {"q": q[0], "k": k[0], "w": w[0], "grid": grid, "grids": None}
    if local:
        arguments["window"] = draw(window_for(grid))
    else:
        smallest = min(g[0] for g in layer_grids), min(g[1] for g in layer_grids)
        arguments["cells"] = draw(st.none() | cells_for(smallest))
    arguments |= {"scale": draw(st.sampled_from([None, 0.0, 0.5])), "backend": draw(backends)}
    return arguments, spoilt(draw, arguments), dtype


def prepared(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments as the reference wants them: pairs, and no default left open."""
    given_arguments = {name: value for name, value in arguments.items() if name != "backend"}
    scale = given_arguments["scale"]
    given_arguments["scale"] = None if scale is None else float(scale)  # a whole number past 64 bits is a scale too
    layer_grids = given_arguments["grids"] or [given_arguments["grid"]]
    finest = max(layer_grids, key=lambda grid: grid[0] * grid[1])
    given_arguments["grid"] = tuple(given_arguments["grid"] or finest)
    if "window" in given_arguments:
        given_arguments["window"] = pair(given_arguments["window"])
        return given_arguments
    smallest = tuple(min(min(g[side] for g in layer_grids), given_arguments["grid"][side]) for side in (0, 1))
    cells = given_arguments["cells"]
    given_arguments["cells"] = default_cells(smallest) if cells is None else pair(cells)
    return given_arguments


@FUZZ
@given(layer_calls(local=True))
def test_local_affinity(call):
    arguments, wrong, dtype = call
    judge(
        arguments,
        lambda: nk.local_affinity(**arguments).to_dense(),
        lambda: reference.local_affinity(**prepared(arguments)),
        spoilt=wrong,
        dtype=rounding_of(dtype),
    )


@FUZZ
@given(layer_calls(local=False))
def test_global_affinity(call):
    arguments, wrong, dtype = call
    judge(
        arguments,
        lambda: nk.global_affinity(**arguments).to_dense(),
        lambda: reference.global_affinity(**prepared(arguments)),
        spoilt=wrong,
        dtype=rounding_of(dtype),
    )


@st.composite
def local_parts(draw: st.DrawFn, grid: Grid, dtype: torch.dtype, batch: int) -> dict[str, Any]:
    window = draw(window_for(grid))
    columns = pair(window)[0] * pair(window)[1]
    return {"values": tensor(draw, (batch, grid[0] * grid[1], columns), dtype), "grid": grid, "window": window}


@st.composite
def low_rank_parts(draw: st.DrawFn, grid: Grid, dtype: torch.dtype, batch: int) -> dict[str, Any]:
    tokens = grid[0] * grid[1]
    if draw(st.booleans()):
        cells = draw(cells_for(grid))
        u = tensor(draw, (batch, tokens, pair(cells)[0] * pair(cells)[1]), dtype)
        return {"u": u, "v": None, "grid": grid, "cells": cells}
    shape = (batch, tokens, draw(small))
    return {"u": tensor(draw, shape, dtype), "v": tensor(draw, shape, dtype), "grid": grid, "cells": None}


@FUZZ
@given(st.data(), dtypes, grids, st.integers(1, 2), st.booleans())
def test_products_with_an_affinity(data, dtype, grid, batch, is_local):
    arguments = data.draw((local_parts if is_local else low_rank_parts)(grid, dtype, batch))
    p_shape = (data.draw(st.sampled_from([1, batch])), grid[0] * grid[1], data.draw(st.integers(1, 7)))
    arguments["P"] = tensor(data.draw, p_shape, dtype)
    wrong = spoilt(data.draw, arguments)
    parts = {name: value for name, value in arguments.items() if name != "P"}

    def dense() -> torch.Tensor:
        if is_local:
            return reference.window_to_dense(parts["values"], grid=tuple(parts["grid"]), window=pair(parts["window"]))
        cells = None if parts["cells"] is None else pair(parts["cells"])
        return reference.low_rank_to_dense(parts["u"], parts["v"], grid=tuple(parts["grid"]), cells=cells)

    def product() -> torch.Tensor:
        p = arguments["P"].double()
        result = dense() @ p
        return result[0] if p.dim() == 2 and result.shape[0] == 1 else result

    affinity = nk.LocalAffinity if is_local else nk.LowRankAffinity
    judge(arguments, lambda: affinity(**parts) @ arguments["P"], product, spoilt=wrong, dtype=dtype)
    if not wrong:
        judge(arguments, lambda: affinity(**parts).to_dense(), dense, spoilt=False, dtype=dtype)


@FUZZ
@given(st.data(), dtypes, grids, st.floats(0, 1))
def test_mix(data, dtype, grid, beta):
    far = data.draw(low_rank_parts(grid, dtype, data.draw(st.sampled_from([1, 2]))))
    near = data.draw(local_parts(grid, dtype, data.draw(st.sampled_from([1, 2]))))
    arguments: dict[str, Any] = {
        "s_global": nk.LowRankAffinity(**far),
        "s_local": nk.LocalAffinity(**near),
        "beta": beta,
    }
    wrong = spoilt(data.draw, arguments)

    def expected() -> torch.Tensor:
        cells = None if far["cells"] is None else pair(far["cells"])
        return reference.mix(
            reference.low_rank_to_dense(far["u"], far["v"], grid=grid, cells=cells),
            reference.window_to_dense(near["values"], grid=grid, window=pair(near["window"])),
            arguments["beta"],
        )

    judge(arguments, lambda: nk.mix(**arguments).to_dense(), expected, spoilt=wrong, dtype=dtype)


@FUZZ
@given(st.data(), dtypes, grids, st.integers(1, 2), st.booleans())
def test_from_dense(data, dtype, grid, batch, is_local):
    tokens = grid[0] * grid[1]
    arguments: dict[str, Any] = {"matrix": probabilities(data.draw, (batch, tokens, tokens), dtype), "grid": grid}
    name = "window" if is_local else "cells"
    arguments[name] = data.draw((window_for if is_local else cells_for)(grid))
    wrong = spoilt(data.draw, arguments)

    def expected() -> torch.Tensor:
        matrix, size, of = arguments["matrix"].double(), pair(arguments[name]), tuple(arguments["grid"])
        if is_local:
            return _window_rows(matrix, of, size)
        average = reference.cell_average(of, size)
        return matrix @ (average > 0).double() @ average.T

    made = nk.LocalAffinity if is_local else nk.LowRankAffinity
    judge(arguments, lambda: made.from_dense(**arguments).to_dense(), expected, spoilt=wrong, dtype=dtype)
