"""Stage 2 against the reference: windows, cells, several layers, constructors, and their edges."""

from __future__ import annotations

import pytest
import torch
from tests.ops.problems import queries_and_keys, random_weights, relative_error, walk_problem

import nerve_kernels as nk
from nerve_kernels import reference
from nerve_kernels.grids import cell_edges, default_cells, window_neighbours

GRIDS = [
    ((7, 11), (3, 5), (3, 4)),
    ((1, 1), (1, 1), (1, 1)),
    ((1, 9), (1, 17), (1, 9)),
    ((6, 5), (11, 9), (6, 5)),  # the largest window and a cell for each token
    ((19, 13), (7, 7), (4, 4)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("grid", "window", "cells"), GRIDS, ids=str)
def test_both_affinities_agree_with_the_reference(grid, window, cells, dtype):
    tokens = grid[0] * grid[1]
    q, k = queries_and_keys(0, 2, 3, tokens, tokens, 10, dtype)
    w = random_weights(1, 2, 3, dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    lse = nk.attention_entropy(q, k, return_lse=True)[1]
    for given in (None, lse):
        local = nk.local_affinity(q, k, w, grid=grid, window=window, lse=given)
        expected = reference.local_affinity(q, k, w, grid=grid, window=window)
        assert relative_error(local.to_dense(), expected) < tolerance
        low_rank = nk.global_affinity(q, k, w, grid=grid, cells=cells, lse=given)
        expected = reference.global_affinity(q, k, w, grid=grid, cells=cells)
        assert relative_error(low_rank.to_dense(), expected) < tolerance
    assert local.values.dtype == low_rank.u.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision_queries_give_float32_affinities(dtype):
    q, k = queries_and_keys(2, 1, 2, 35, 35, 40, dtype)
    w = random_weights(3, 1, 2)
    local = nk.local_affinity(q, k, w, grid=(5, 7), window=3)
    low_rank = nk.global_affinity(q, k, w, grid=(5, 7), cells=2)
    assert local.values.dtype == low_rank.u.dtype == torch.float32
    expected = reference.local_affinity(q, k, w, grid=(5, 7), window=(3, 3))
    assert relative_error(local.to_dense(), expected) < 1e-5


@pytest.mark.parametrize("target", [None, (8, 10), (9, 13)], ids=str)
def test_layers_of_several_grids_agree_with_the_reference(target):
    grids = [(8, 10), (4, 5), (3, 2)]
    layers = [queries_and_keys(seed, 2, 2, h * w, h * w, 6) for seed, (h, w) in enumerate(grids)]
    q, k = [layer[0] for layer in layers], [layer[1] for layer in layers]
    statistics = [nk.attention_entropy(*layer, return_lse=True) for layer in layers]
    entropies = [entropy for entropy, _ in statistics]
    w = nk.head_weights(entropies, num_keys=[h * w for h, w in grids], temperature=0.5)
    grid = target or (8, 10)
    for lse in (None, [item for _, item in statistics]):
        local = nk.local_affinity(q, k, w, grid=target, grids=grids, window=5, lse=lse)
        expected = reference.local_affinity(q, k, w, grid=grid, grids=grids, window=(5, 5))
        assert local.grid == grid
        assert relative_error(local.to_dense(), expected) < 1e-5
        low_rank = nk.global_affinity(q, k, w, grid=target, grids=grids, cells=(3, 2), lse=lse)
        expected = reference.global_affinity(q, k, w, grid=grid, grids=grids, cells=(3, 2))
        assert relative_error(low_rank.to_dense(), expected) < 1e-5
        assert (low_rank.u.sum(-1) - 1).abs().max() < 1e-5
    assert nk.global_affinity(q, k, w, grids=grids).cells == (3, 2), "default cells fit the coarsest layer"


def test_global_affinity_of_a_finer_layer_is_brought_down_and_local_affinity_refuses_it():
    q, k = queries_and_keys(4, 1, 2, 36, 36, 5)
    w = [random_weights(5, 1, 2)]
    low_rank = nk.global_affinity([q], [k], w, grid=(3, 3), grids=[(6, 6)], cells=3)
    expected = reference.global_affinity([q], [k], w, grid=(3, 3), grids=[(6, 6)], cells=(3, 3))
    assert relative_error(low_rank.to_dense(), expected) < 1e-5
    with pytest.raises(
        ValueError,
        match=r"grids\[0\]: expected a grid no finer than that of the affinity, \(3, 3\).*, got \(6, 6\); leave",
    ):
        nk.local_affinity([q], [k], w, grid=(3, 3), grids=[(6, 6)], window=3)


def test_a_window_emptied_by_a_far_sink_becomes_the_identity():
    # token 0 of a long row draws all attention: far windows keep less than float32 can hold
    keys = torch.zeros(1, 1, 12, 1)
    keys[0, 0, 0, 0] = 200.0
    queries = torch.ones(1, 1, 12, 1)
    local = nk.local_affinity(queries, keys, torch.ones(1, 1), grid=(1, 12), window=(1, 3), scale=1.0)
    assert local.values[0, 6].tolist() == [0.0, 1.0, 0.0]
    expected = reference.local_affinity(queries, keys, torch.ones(1, 1), grid=(1, 12), window=(1, 3), scale=1.0)
    assert relative_error(local.to_dense(), expected) < 1e-6
    assert (local.values.sum(-1) - 1).abs().max() < 1e-6


def test_global_walk_is_exact_on_columns_that_are_constant_on_cells():
    grid, cells = (7, 9), (3, 4)
    q, k = queries_and_keys(6, 1, 2, 63, 63, 8, torch.float64)
    w = random_weights(7, 1, 2, torch.float64)
    low_rank = nk.global_affinity(q, k, w, grid=grid, cells=cells)
    membership = reference.cell_average(grid, cells) > 0
    constant = membership.double() @ torch.rand(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    exact = reference.fuse_attention(q, k, w) @ constant
    assert relative_error(low_rank @ constant.unsqueeze(0), exact) < 1e-13


def test_cells_cover_the_grid_as_defined():
    assert cell_edges(11, 4).tolist() == [0, 2, 5, 8, 11]
    assert default_cells((64, 9)) == (16, 9)
    q, k = queries_and_keys(9, 1, 1, 20 * 9, 20 * 9, 4)
    assert nk.global_affinity(q, k, torch.ones(1, 1), grid=(20, 9)).cells == (16, 9)


@pytest.mark.parametrize("cells", [(2, 2), (3, 4), None], ids=["even", "uneven", "factors"])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_products_agree_with_the_dense_matrix(cells, beta):
    problem = walk_problem(10, (6, 8), batch=2, window=(5, 3), cells=cells, dtype=torch.float32)
    for affinity, dense in [
        (problem.mixed(beta), problem.dense(beta)),
        (problem.local, problem.dense(0.0)),
        (problem.low_rank, problem.dense(1.0)),
    ]:
        assert affinity.shape == (2, 48, 48)
        assert relative_error(affinity @ problem.seeds, dense @ problem.seeds.double()) < 1e-6
        assert relative_error(affinity.to_dense(), dense) < 1e-6
        half = affinity.to(torch.bfloat16)
        assert half.shape == affinity.shape
        product = half @ problem.seeds
        assert product.dtype == torch.float32
        assert relative_error(product, dense @ problem.seeds.double()) < 1e-2


def test_a_product_takes_one_picture_without_its_batch():
    problem = walk_problem(11, (4, 5))
    mixed = problem.mixed(0.5)
    assert torch.equal(mixed @ problem.seeds[0], (mixed @ problem.seeds)[0])
    many = torch.cat([problem.seeds, 1 - problem.seeds])
    assert torch.equal((mixed @ many)[1], mixed @ (1 - problem.seeds)[0])


def test_affinities_from_dense_maps_are_those_from_queries_and_keys():
    q, k = queries_and_keys(12, 2, 3, 35, 35, 8)
    w = random_weights(13, 2, 3)
    fused = nk.fuse_attention(q, k, w)
    local = nk.LocalAffinity.from_dense(fused, grid=(5, 7), window=(3, 5))
    assert relative_error(local.values, nk.local_affinity(q, k, w, grid=(5, 7), window=(3, 5)).values) < 1e-5
    low_rank = nk.LowRankAffinity.from_dense(fused, grid=(5, 7), cells=(2, 3))
    assert relative_error(low_rank.u, nk.global_affinity(q, k, w, grid=(5, 7), cells=(2, 3)).u) < 1e-5


def test_values_outside_the_grid_are_never_read():
    problem = walk_problem(14, (4, 4), dtype=torch.float32)
    outside = ~window_neighbours((4, 4), (3, 3))[1]
    poisoned = nk.LocalAffinity(problem.local.values.masked_fill(outside, float("nan")), grid=(4, 4), window=(3, 3))
    for backend in (None, "eager"):
        walked = nk.random_walk(problem.seeds, poisoned, alpha=0.9, steps=3, backend=backend)
        assert torch.equal(walked, nk.random_walk(problem.seeds, problem.local, alpha=0.9, steps=3, backend=backend))
    assert torch.equal(poisoned @ problem.seeds, problem.local @ problem.seeds)
    assert torch.equal(poisoned.to_dense(), problem.local.to_dense())
