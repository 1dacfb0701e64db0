"""Stage 3 against the reference and against other people's walks, and its edges."""

from __future__ import annotations

import networkx
import numpy as np
import pytest
import scipy.sparse
import torch
from tests.ops.problems import relative_error, walk_problem

import nerve_kernels as nk
from nerve_kernels import reference
from nerve_kernels.walk import steps_for_tolerance

PROBLEMS = {
    "even cells": {"grid": (6, 8), "cells": (3, 4)},
    "uneven cells": {"grid": (7, 11), "cells": (3, 4), "window": (5, 3)},
    "one row": {"grid": (1, 13), "cells": (1, 5), "window": (1, 5)},
    "explicit factors": {"grid": (5, 5), "cells": None},
    "batch": {"grid": (5, 6), "batch": 3},
    "shared affinity": {"grid": (5, 6), "batch": 3, "affinity_batch": 1},
    "more than one tile": {"grid": (19, 21), "cells": (4, 4), "window": (7, 7), "labels": 21},
    "large window": {"grid": (6, 6), "window": (11, 11)},
}


CPU_BACKENDS = [name for name in nk.available_backends() if name in ("cpp", "eager")]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", PROBLEMS)
def test_structured_and_dense_walks_agree_with_the_reference(name, beta, backend):
    problem = walk_problem(0, **PROBLEMS[name])
    dense = problem.dense(beta)
    for normalize in (True, False):
        expected = reference.random_walk(problem.seeds, dense, alpha=0.8, steps=7, normalize=normalize)
        for affinity in (problem.mixed(beta), dense):
            result = nk.random_walk(problem.seeds, affinity, alpha=0.8, steps=7, normalize=normalize, backend=backend)
            assert result.dtype == torch.float64
            assert relative_error(result, expected) < 1e-13


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_lower_precision_seeds_are_walked_in_float32(dtype, backend):
    problem = walk_problem(1, (9, 10), labels=21, window=(7, 7), cells=(3, 4), dtype=dtype)
    result = nk.random_walk(problem.seeds, problem.mixed(0.5), alpha=0.9, steps=20, backend=backend)
    expected = reference.random_walk(problem.seeds, problem.dense(0.5), alpha=0.9, steps=20)
    assert result.dtype == dtype
    # only the last rounding to dtype is lost
    assert relative_error(result, expected) < {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}[dtype]


def test_low_precision_storage_of_the_affinity_under_float32_seeds():
    problem = walk_problem(2, (12, 12), labels=5, window=(5, 5), cells=(4, 4), dtype=torch.float32)
    expected = reference.random_walk(problem.seeds, problem.dense(0.5), alpha=0.9, steps=20)
    stored = problem.mixed(0.5).to(torch.bfloat16)
    result = nk.random_walk(problem.seeds, stored, alpha=0.9, steps=20)
    assert result.dtype == torch.float32
    assert relative_error(result, expected) < 4e-3


def test_no_steps_and_no_neighbours_give_the_seeds_in_memory_of_their_own():
    problem = walk_problem(3, (4, 5), dtype=torch.float32)
    mixed = problem.mixed(0.5)
    for options in ({"alpha": 0.9, "steps": 0}, {"alpha": 0.0, "steps": 5}, {"alpha": 0.0, "tol": 1e-9}):
        result = nk.random_walk(problem.seeds, mixed, **options, normalize=False)
        assert torch.equal(result, problem.seeds)
        result.zero_()
        assert problem.seeds.sum() > 0


def test_a_seed_row_of_zeros_does_not_become_nan():
    seeds = torch.zeros(1, 4, 2)
    seeds[0, 0] = torch.tensor([0.3, 0.7])
    stay = nk.LocalAffinity(torch.ones(1, 4, 1), grid=(2, 2), window=1)
    result = nk.random_walk(seeds, stay, alpha=0.5, steps=3)
    assert result[0, 1:].abs().max() == 0
    assert (result[0, 0] - seeds[0, 0]).abs().max() < 1e-6


def test_one_picture_without_a_batch_and_any_strides():
    problem = walk_problem(4, (5, 6), batch=2, dtype=torch.float32)
    mixed = problem.mixed(0.5)
    result = nk.random_walk(problem.seeds, mixed, alpha=0.8, steps=4)
    channels_first = problem.seeds.transpose(1, 2).contiguous().transpose(1, 2)
    assert not channels_first.is_contiguous()
    strided = nk.random_walk(channels_first, mixed, alpha=0.8, steps=4)
    assert torch.equal(strided, result)
    assert strided.is_contiguous()
    single = walk_problem(4, (5, 6), dtype=torch.float32)
    alone = nk.random_walk(single.seeds[0], single.mixed(0.5), alpha=0.8, steps=4)
    assert torch.equal(alone, nk.random_walk(single.seeds, single.mixed(0.5), alpha=0.8, steps=4)[0])


def test_a_thousand_labels_and_repeatability():
    problem = walk_problem(5, (6, 7), labels=1203, dtype=torch.float32)
    runs = [nk.random_walk(problem.seeds, problem.mixed(0.5), alpha=0.9, steps=5) for _ in range(3)]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])
    expected = reference.random_walk(problem.seeds, problem.dense(0.5), alpha=0.9, steps=5)
    assert relative_error(runs[0], expected) < 1e-6


def test_the_number_of_steps_for_a_tolerance():
    assert steps_for_tolerance(0.0, 1e-12) == 0
    assert steps_for_tolerance(0.9, 2.0) == 0
    for alpha, steps in [(0.1, 3), (0.1, 5), (0.5, 29), (0.9, 4), (0.99, 2)]:  # of the last four the quotient is above
        assert steps_for_tolerance(alpha, alpha**steps) == steps, "an exact power must not be rounded up"
    for alpha, tol in [(0.5, 1e-3), (0.9, 1e-6), (0.99, 0.3)]:
        steps = steps_for_tolerance(alpha, tol)
        assert alpha**steps <= tol < alpha ** (steps - 1)


def test_a_tolerance_is_kept():
    problem = walk_problem(6, (6, 6), labels=4)
    limit = reference.random_walk_limit(problem.seeds, problem.dense(0.5), alpha=0.9)
    for tol in (0.1, 1e-3, 1e-6):
        result = nk.random_walk(problem.seeds, problem.mixed(0.5), alpha=0.9, tol=tol, normalize=False)
        assert (result - limit).abs().max() <= tol


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_limit_agrees_with_the_reference_within_its_bound(name, dtype, backend):
    problem = walk_problem(7, **PROBLEMS[name], dtype=dtype)
    expected = reference.random_walk_limit(problem.seeds, problem.dense(0.4), alpha=0.95)
    mixed = problem.mixed(0.4)
    result, bound = nk.random_walk_limit(problem.seeds, mixed, alpha=0.95, return_bound=True, backend=backend)
    error = (result.double() - expected).abs().max()
    assert error <= bound * (1 + 1e-9) + 1e-14
    assert bound <= 1e-6
    dense = nk.random_walk_limit(problem.seeds, problem.dense(0.4), alpha=0.95)
    assert (dense.double() - expected).abs().max() < 1e-6


def test_the_limit_needs_fewer_products_than_the_walk():
    problem = walk_problem(8, (20, 20), labels=4, window=(7, 7), cells=(5, 5))
    affinity = problem.mixed(0.5).operator_arguments()
    for alpha, tol in [(0.9, 1e-6), (0.99, 1e-6), (0.9, 1e-10)]:
        result, bound, counts = torch.ops.nerve_kernels.random_walk_limit(problem.seeds, *affinity, alpha, tol)
        assert bound <= tol
        assert int(counts[0]) < steps_for_tolerance(alpha, tol) / 2
        expected = reference.random_walk_limit(problem.seeds, problem.dense(0.5), alpha=alpha)
        assert (result - expected).abs().max() <= tol


def test_a_limit_beyond_the_dtype_comes_with_a_warning_and_its_bound():
    problem = walk_problem(9, (5, 5), dtype=torch.float16)
    with pytest.warns(UserWarning, match=r"tol=1e-06 is below what torch.float16 seeds allow.*certified to"):
        result, bound = nk.random_walk_limit(problem.seeds, problem.mixed(0.5), alpha=0.9, return_bound=True)
    expected = reference.random_walk_limit(problem.seeds, problem.dense(0.5), alpha=0.9)
    assert 1e-6 < bound < 1e-3
    assert (result.double() - expected).abs().max() <= bound


def test_the_limit_of_an_affinity_that_grows_is_refused():
    seeds = torch.rand(1, 4, 2, generator=torch.Generator().manual_seed(10))
    with pytest.raises(ValueError, match=r"affinity: expected alpha · largest absolute row sum < 1, got 0\.\d+ · 8 = "):
        nk.random_walk_limit(seeds, torch.full((1, 4, 4), 2.0), alpha=0.5)


def test_networkx_pagerank_is_the_forward_chain_of_the_same_limit():
    problem = walk_problem(11, (4, 5), labels=1)
    dense = problem.dense(0.5)[0]
    graph = networkx.from_numpy_array(dense.numpy(), create_using=networkx.DiGraph)
    weights = torch.rand(20, generator=torch.Generator().manual_seed(12), dtype=torch.float64)
    personalization = {node: float(weight) for node, weight in enumerate(weights)}
    ranks = networkx.pagerank(graph, alpha=0.85, personalization=personalization, tol=1e-13, max_iter=1000)
    # networkx walks forward: r = (1−α) p + α Sᵀ r
    start = (weights / weights.sum())[None, :, None]
    ours = torch.linalg.solve(torch.eye(20, dtype=torch.float64) - 0.85 * dense.T, 0.15 * start[0, :, 0])
    assert np.allclose([ranks[node] for node in range(20)], ours.numpy(), atol=1e-10)
    # and ⟨p, P_∞⟩ = ⟨r, G⟩: the two chains are adjoint
    limit = nk.random_walk_limit(problem.seeds, problem.mixed(0.5), alpha=0.85, tol=1e-12)
    left = float((start * limit).sum())
    right = float((ours[None, :, None] * problem.seeds).sum())
    assert abs(left - right) < 1e-10


def test_scipy_solves_the_same_limit():
    problem = walk_problem(13, (18, 17), labels=3, window=(5, 5), cells=(6, 6))
    matrix = scipy.sparse.identity(306, format="csc") - 0.9 * scipy.sparse.csc_matrix(problem.dense(0.3)[0].numpy())
    expected = scipy.sparse.linalg.spsolve(matrix, 0.1 * problem.seeds[0].numpy())
    result = nk.random_walk_limit(problem.seeds, problem.mixed(0.3), alpha=0.9, tol=1e-10)
    assert np.abs(result[0].numpy() - expected).max() < 1e-10


def test_pyg_appnp_is_the_same_walk_with_teleport_one_minus_alpha():
    appnp = pytest.importorskip("torch_geometric.nn", reason="torch_geometric is not installed").APPNP
    problem = walk_problem(14, (7, 9), labels=4, cells=(3, 4))
    target, source = problem.dense(0.4)[0].nonzero().T
    layer = appnp(K=15, alpha=1 - 0.8, add_self_loops=False, normalize=False)  # the rows of S sum to 1 as they are
    expected = layer(problem.seeds[0], torch.stack([source, target]), problem.dense(0.4)[0][target, source])
    for backend in nk.available_backends():
        result = nk.random_walk(
            problem.seeds, problem.mixed(0.4), alpha=0.8, steps=15, normalize=False, backend=backend
        )
        assert (result[0] - expected).abs().max() < 1e-12
