"""Walks on stencils and graphs in Triton's interpreter, on the CPU, and their kernels broken on purpose.

Run by test_interpreted.py.
"""

from __future__ import annotations

import functools

import pytest
import torch
from tests.triton.mutation import kernels_with
from tests.triton.sparse_walk_problems import SPARSE_KINDS, SparseProblem
from tests.triton.walk_problems import random_walk, walk_gradients

import nerve_kernels as nk
from nerve_kernels._triton.launch import recording
from nerve_kernels._triton.walk import graph_step
from nerve_kernels._triton.walk import random_walk as triton_walk
from nerve_kernels._triton.walk import random_walk_backward as triton_walk_backward

walk = functools.partial(random_walk, make=SparseProblem)
gradients = functools.partial(walk_gradients, make=SparseProblem)


# what is interpreted takes 10 ms a place of a stencil, a tile of tokens and a step
SMALL = {"grid": (3, 4), "dilations": (2,), "cells": (1, 2)}


@pytest.mark.parametrize("kind", ["stencil", "clamped", "graph"])
def test_several_tiles(kind):
    """One of them with all of its places within the grid; or several blocks of rows."""
    walk(triton_walk.run, kind=kind, steps=1, grid=(9, 18), dilations=(1,))


@pytest.mark.parametrize("kind", SPARSE_KINDS)
def test_every_affinity(kind):
    walk(triton_walk.run, kind=kind, batch=2, affinity_batch=2, steps=3, **SMALL)


@pytest.mark.parametrize("kind", ["stencil", "clamped", "graph"])
@pytest.mark.parametrize(
    "options",
    [
        {"dtype": torch.float16, "planar": False, "index_dtype": torch.int64, "steps": 1},
        {"seeds_dtype": torch.float16, "steps": 1, "centre": True, "batch": 2},
        {"labels": 70, "steps": 1, "alpha": 1.0, "dilations": (1,)},
        {"grid": (1, 37), "window": (1, 5), "labels": 1, "normalize": False, "alpha": 1.0},
        {"steps": 0},
    ],
    ids=str,
)
def test_walks_of(kind, options):
    walk(triton_walk.run, kind=kind, **SMALL | options)


@pytest.mark.parametrize("kind", ["clamped", "graph", "mixed stencil", "mixed graph factors"])
def test_gradients(kind):
    gradients(triton_walk_backward.run, kind=kind, **SMALL)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("stencil", {"planar": False, "dtype": torch.float16, "labels": 33, "steps": 1, "batch": 2}),
        ("clamped", {"grid": (1, 7), "window": (1, 3), "dilations": (1, 9), "centre": True, "steps": 1}),
        ("graph", {"index_dtype": torch.int64, "affinity_batch": 2, "batch": 2, "labels": 33, "steps": 1}),
        ("graph", {"batch": 2}),
        ("stencil", {"steps": 5}),
        ("mixed graph", {"steps": 5}),
    ],
    ids=str,
)
def test_gradients_of(kind, options):
    """An affinity of one batch for all seeds gets the sum over their batch."""
    gradients(triton_walk_backward.run, kind=kind, **SMALL | options)


def test_the_limit_by_steps_of_the_kernels(monkeypatch):
    """On more tokens than are solved for directly; rows are sorted once."""
    sorts = []
    monkeypatch.setattr(
        graph_step, "rows_by_length", lambda *a, by=graph_step.rows_by_length: (sorts.append(1), by(*a))[1]
    )
    seeds, affinity, *_ = SparseProblem(kind="graph", grid=(20, 13), labels=1).arguments()
    form = nk.GraphAffinity(affinity.row_pointers, affinity.columns.clamp(0, 259), affinity.values / 4)
    results = [
        nk.random_walk_limit(seeds, form, alpha=0.5, tol=1e-6, return_bound=True, backend=name)
        for name in ("triton", "eager")
    ]
    assert all(bound <= 1e-6 for _, bound in results)
    assert (results[0][0] - results[1][0]).abs().max() <= 2e-6
    assert len(sorts) == 1


def test_each_image_of_a_batch_bounds_the_limit():
    """The largest row sum of S is that of all its images, whatever is multiplied."""
    values = torch.full((2, 4, 2), 0.25)
    values[1] = 0.6
    form = nk.LocalAffinity(values, grid=(1, 4), window=(1, 3), centre=False, border="clamp")
    with pytest.raises(ValueError, match="largest absolute row sum"):
        nk.random_walk_limit(torch.ones(2, 4, 1), form, alpha=0.9, tol=1e-6, backend="triton")


def test_what_a_walk_needs_is_made_without_a_look_at_the_device():
    """Offsets and orders of rows come from what the device has: nothing is copied there, nothing read."""
    for kind in ("clamped", "graph"):
        arguments = [
            item.map(lambda tensor: tensor.to("meta")) if hasattr(item, "map") else item
            for item in SparseProblem(kind=kind).arguments()
        ]
        arguments[0] = arguments[0].to("meta")
        graph = {name: getattr(arguments[1], name) for name in ("row_pointers", "columns")}
        meta = {name: part.to("meta") for name, part in graph.items() if part is not None}
        arguments[1] = arguments[1]._replace(**meta)
        with recording() as launches:
            triton_walk.run(*arguments)
            triton_walk_backward.run(arguments[0], *arguments)
        assert launches


# (solved by, file, what is replaced, by what, options of the problem)
MUTANTS = {
    "a stencil wraps around the grid's sides": (
        "random_walk", "stencil_step", " & (from_x >= 0) & (from_x < width)", "", {},
    ),
    "a border is not repeated": (
        "random_walk", "stencil_step", "if CLAMP and not TRANSPOSED:", "if False:", {"kind": "clamped"},
    ),
    "the centre is counted in": ("random_walk", "stencil_step", "if not CENTRE:", "if False:", {}),
    "every dilation is the first": (
        "random_walk", "stencil_step", "dilations + number", "dilations", {"dilations": (1, 2), "steps": 1},
    ),
    "values are those of the first image": (
        "random_walk", "stencil_step", "values + batch * values_batch", "values", {"batch": 2, "affinity_batch": 2},
    ),
    "labels beyond the last count": (
        "random_walk", "stencil_step", "tl.where((label < labels)[None, :], total * local_share, 0.0)",
        "total * local_share", {},
    ),
    "places of a tile within the grid are those of the tile above": (
        "random_walk", "stencil_step", "dy * width + dx", "dx", {"grid": (9, 18), "dilations": (1,), "steps": 1},
    ),
    "tiles at the border are within the grid": (
        "random_walk", "stencil_step", "inside & (left >= reach_x)", "inside",
        {"grid": (9, 18), "dilations": (1,), "steps": 1},
    ),
    "the restart is skipped": ("random_walk", "stencil_step", "if BASE:", "if False:", {}),
    "the restart of a graph is skipped": ("random_walk", "graph_step", "if BASE:", "if False:", {"kind": "graph"}),
    "rows are not divided": ("random_walk", "stencil_step", "if NORMALIZE:", "if False:", {}),
    "rows of a graph are not divided": (
        "random_walk", "graph_step", "if NORMALIZE:", "if False:", {"kind": "graph"},
    ),
    "the rest of a long row is forgotten": (
        "random_walk", "graph_step", "range(0, tl.max(end - begin), ENTRIES)", "range(0, ENTRIES, ENTRIES)",
        {"kind": "graph"},
    ),
    "entries of the next row count": (
        "random_walk", "graph_step", "is_entry = at < end[:, None]", "is_entry = at < entries", {"kind": "graph"},
    ),
    "columns beyond the graph count": (
        "random_walk", "graph_step", "inside = (column >= 0) & (column < tokens)",
        "inside = is_entry\n        column = tl.minimum(tl.maximum(column, 0), tokens - 1)", {"kind": "graph"},
    ),
    "empty rows are zeros": ("random_walk", "graph_step", "(result + own.to(tl.float32))", "result", {"kind": "graph"}),
    "the graph is the first image's": (
        "random_walk", "graph_step", "columns + batch * columns_batch", "columns",
        {"kind": "graph", "batch": 2, "affinity_batch": 2},
    ),
    "the adjoint walks S, not its transpose": (
        "random_walk_backward", "stencil_step", "not self.transposed", "False", {},
    ),
    "the adjoint takes the values of the token, not of its neighbour": (
        "random_walk_backward", "stencil_step", "row = source if TRANSPOSED else rows", "row = rows", {},
    ),
    "the margin is not folded": (
        "random_walk_backward", "stencil_step", "tl.where(position == 0, 0, position + margin)", "position + margin",
        {"kind": "clamped"},
    ),
    "the margin below is not folded": (
        "random_walk_backward", "stencil_step",
        "tl.where(position == side - 1, side + 2 * margin - 1, position + margin)", "position + margin",
        {"kind": "clamped"},
    ),
    "a transposed graph has no identity": (
        "random_walk_backward", "graph_step", "(result + own.to(tl.float32))", "result", {"kind": "graph"},
    ),
    "columns of a transposed graph are not looked at": (
        "random_walk_backward", "graph_step", "torch.where(inside, columns, tokens)", "columns.clamp(0, tokens - 1)",
        {"kind": "graph"},
    ),
    "the gradient of a stencil's values forgets earlier steps": (
        "random_walk_backward", "sparse_gradients", "tl.load(at, mask=valid, other=0.0) + share", "share", {},
    ),
    "the gradient of values forgets a batch": (
        "random_walk_backward", "sparse_gradients", "range(batches)", "range(batches - 1)", {"batch": 2},
    ),
    "the gradient of a graph's values forgets labels": (
        "random_walk_backward", "sparse_gradients", "range(0, labels, LABELS)", "range(0, labels - LABELS, LABELS)",
        {"kind": "graph", "labels": 33},
    ),
    "the gradient of a clamped stencil ends at the border": (
        "random_walk_backward", "sparse_gradients", "if CLAMP:", "if False:", {"kind": "clamped"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_fails(mutant, tmp_path):
    operation, file, original, replacement, options = MUTANTS[mutant]
    solve = walk if operation == "random_walk" else gradients
    with (
        kernels_with(operation, file, original, replacement, tmp_path) as broken,
        pytest.raises(AssertionError),
    ):
        solve(broken, **SMALL | options)


def test_strides_do_not_matter():
    arguments = SparseProblem(kind="stencil", **SMALL).arguments()
    planes = arguments[1].values
    rows = arguments[1]._replace(values=planes.contiguous())
    results = [triton_walk.run(arguments[0], each, *arguments[2:]) for each in (arguments[1], rows)]
    assert planes.stride() != rows.values.stride()
    assert torch.equal(*results)
