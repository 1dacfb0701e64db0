"""The walk's Triton kernels in Triton's interpreter, on the CPU: run by test_interpreted.py.

Grids give at least two tiles along each axis, two blocks of U's columns, several parts of the halo, and remainders.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tests.ops.problems import relative_error, walk_problem
from tests.triton.walk_problems import KINDS, Problem, random_walk, walk_gradients, window_product

import nerve_kernels as nk
from nerve_kernels import reference
from nerve_kernels._triton.launch import Launch
from nerve_kernels._triton.walk import random_walk as triton_walk
from nerve_kernels._triton.walk import random_walk_backward as triton_walk_backward
from nerve_kernels._triton.walk import window_product as triton_window_product


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_affinity(kind, dtype):
    """Weights stored in float16 lose nothing more than their own rounding: same bound, against the stored weights."""
    random_walk(triton_walk.run, kind=kind, dtype=dtype, batch=2 if dtype == torch.float16 else 1)


@pytest.mark.parametrize(
    ("grid", "window", "cells"),
    [
        ((1, 1), (1, 1), (1, 1)),
        ((1, 9), (1, 17), (1, 3)),
        ((7, 11), (3, 3), (7, 11)),  # each token a cell: T is P
        ((12, 10), (5, 3), (4, 2)),  # 15 tokens in 16 slots
        ((9, 22), (3, 7), (3, 2)),  # 33 tokens in 64 slots: one cell fills a tile
        ((7, 11), (5, 5), (3, 4)),  # uneven
        ((17, 31), (1, 1), (1, 1)),  # a cell of more tokens than one program holds
        ((34, 4), (7, 7), (17, 2)),
        ((6, 10), (11, 19), (3, 5)),  # the largest window
    ],
    ids=str,
)
def test_grids(grid, window, cells):
    random_walk(triton_walk.run, grid=grid, window=window, cells=cells)


@pytest.mark.parametrize("labels", [1, 2, 16, 21, 33, 70, 130])
def test_labels(labels):
    """One block of labels, with rows divided by the last step; several, with a launch for that."""
    random_walk(triton_walk.run, labels=labels, grid=(4, 18), cells=(2, 9), normalize=labels > 1)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("seeds_dtype", [torch.float32, torch.float16], ids=str)
def test_steps(steps, normalize, seeds_dtype):
    random_walk(triton_walk.run, steps=steps, normalize=normalize, seeds_dtype=seeds_dtype, grid=(4, 18), cells=(2, 9))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_affinities(kind):
    random_walk(triton_walk.run, kind=kind, batch=2, affinity_batch=2, grid=(4, 10), cells=(2, 5))


def test_the_limit_by_steps_of_the_kernel(monkeypatch):
    """Products in float32 are the kernel's, the certificate is float64's."""
    launched = []
    original = Launch.run
    monkeypatch.setattr(Launch, "run", lambda self: (launched.append(self.kernel.__name__), original(self)))
    problem = walk_problem(5, (17, 16), labels=2, cells=(5, 4), dtype=torch.float32)
    result, bound = nk.random_walk_limit(
        problem.seeds, problem.mixed(0.5), alpha=0.5, tol=1e-6, return_bound=True, backend="triton"
    )
    assert launched.count("walk_step_kernel") >= 5
    expected = reference.random_walk_limit(problem.seeds, problem.dense(0.5), alpha=0.5)
    assert float((result.double() - expected).abs().max()) <= bound <= 1e-6


@pytest.mark.parametrize("affinity_batch", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind, affinity_batch):
    """An affinity of one batch for all seeds gets the sum over their batch."""
    walk_gradients(
        triton_walk_backward.run, kind=kind, batch=2, affinity_batch=affinity_batch, grid=(4, 10), cells=(2, 5)
    )


@pytest.mark.parametrize(
    "options",
    [
        {"grid": (7, 11), "cells": (3, 4), "labels": 33},
        {"grid": (4, 6), "cells": (4, 6), "steps": 1},
        {"steps": 0},
        {"grid": (7, 11), "cells": (3, 4), "labels": 33, "steps": 11, "batch": 2},  # segments of 3, 3, 3 and 2
        {"grid": (4, 10), "kind": "mixed factors", "steps": 4, "normalize": False},
        {"grid": (4, 10), "kind": "dense", "steps": 5},
        {"grid": (4, 10), "cells": (2, 5), "steps": 6, "seeds_dtype": torch.float16},
        {"grid": (4, 10), "cells": (2, 5), "normalize": False, "labels": 1},
        {"grid": (4, 10), "cells": (2, 5), "dtype": torch.float16, "seeds_dtype": torch.float16, "steps": 1},
    ],
    ids=str,
)
def test_gradients_of(options):
    walk_gradients(triton_walk_backward.run, **options)


@pytest.mark.parametrize(("batch", "affinity_batch"), [(1, 2), (2, 1)])
def test_window_product(batch, affinity_batch):
    window_product(triton_window_product.run, batch=batch, affinity_batch=affinity_batch, labels=21)


def test_strides_do_not_matter():
    problem = Problem(grid=(4, 10), cells=(2, 5), batch=2, affinity_batch=2)
    seeds, affinity, *options = problem.arguments()

    def apart(tensor):
        return tensor.transpose(0, 2).contiguous().transpose(0, 2)

    plain = triton_walk.run(seeds, affinity, *options)
    assert torch.equal(triton_walk.run(apart(seeds), affinity.map(apart), *options), plain)


def test_rows_of_an_affinity_beyond_32_bits(tmp_path):
    """Rows of S 2²⁸ elements apart, in a file that is mostly a hole."""
    tokens, apart = 9, 2**28
    storage = torch.from_file(str(tmp_path / "sparse"), shared=True, size=tokens * apart, dtype=torch.float16)
    affinity = storage.as_strided((1, tokens, tokens), (0, apart, 1))
    affinity.copy_(torch.rand(1, tokens, tokens, generator=torch.Generator().manual_seed(0)).softmax(-1))
    seeds = torch.rand(1, tokens, 3, generator=torch.Generator().manual_seed(1))
    found, wanted = (
        nk.random_walk(seeds, matrix, alpha=0.5, steps=2, backend=backend)
        for matrix, backend in [(affinity, "triton"), (affinity.double(), "eager")]
    )
    assert relative_error(found, wanted.double()) < 1e-6


def test_one_launch_a_step_where_cells_are_even(monkeypatch):
    launched = []
    original = Launch.run
    monkeypatch.setattr(Launch, "run", lambda self: (launched.append(self.kernel.__name__), original(self)))
    for cells, kind, labels, expected in [
        ((2, 5), "mixed", 5, ["average_cells_kernel", *["walk_step_kernel"] * 2]),
        ((2, 5), "local", 5, ["walk_step_kernel"] * 2),
        ((2, 5), "factors", 5, ["walk_step_kernel"] * 2),  # and cuBLAS for Vᵀ P
        ((3, 3), "mixed", 5, ["average_cells_kernel", "walk_step_kernel"] * 2),
        ((2, 5), "dense", 70, ["walk_step_kernel"] * 2 + ["divide_rows_kernel"]),
    ]:
        launched.clear()
        random_walk(triton_walk.run, kind=kind, grid=(4, 10), cells=cells, labels=labels)
        assert launched == expected


def test_a_gradient_takes_one_product_a_segment_for_u(monkeypatch):
    """Four steps in two segments, the first of which is walked once more; even cells are averaged by the steps."""
    launched = []
    original = Launch.run
    monkeypatch.setattr(Launch, "run", lambda self: (launched.append(self.kernel.__name__), original(self)))
    walk_gradients(triton_walk_backward.run, grid=(4, 10), cells=(2, 5), steps=4, normalize=False)
    assert Counter(launched) == {
        "walk_step_kernel": 2 + 2 + 4,
        "average_cells_kernel": 1 + 2,
        "window_values_gradient_kernel": 4,
        "u_gradient_kernel": 2,
    }


def test_the_public_walk_and_its_gradient_take_the_named_backend():
    problem = Problem(grid=(4, 10), cells=(2, 5))
    seeds, (values, u, *_), *_ = problem.arguments()
    values = values.nan_to_num()

    def gradients(backend):
        leaves = [item.clone().requires_grad_() for item in (seeds, values, u)]
        local = nk.LocalAffinity(leaves[1], grid=problem.grid, window=problem.window)
        low_rank = nk.LowRankAffinity(leaves[2], grid=problem.grid, cells=problem.cells)
        p = nk.random_walk(leaves[0], nk.mix(low_rank, local, 0.4), alpha=0.7, steps=3, backend=backend)
        p.square().sum().backward()
        return [p.detach(), *(leaf.grad for leaf in leaves)]

    for found, wanted in zip(gradients("triton"), gradients("eager"), strict=True):
        assert relative_error(found, wanted.double()) < 2e-6


def test_nothing_to_do_is_done():
    seeds, *rest = Problem(grid=(4, 10), cells=(2, 5)).arguments()
    assert triton_walk.run(seeds[:0], *rest).shape == (0, 40, 5)
    assert triton_walk.run(seeds[:, :, :0], *rest).shape == (1, 40, 0)
