"""attention_statistics against the definition, against the operators that it joins, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from tests.ops.problems import queries_and_keys, random_weights, relative_error
from torch import Tensor

import nerve_kernels as nk
from nerve_kernels import _native, reference

BACKENDS = [
    "eager",
    pytest.param("cpp", marks=pytest.mark.skipif(not _native.extension_loaded(), reason="no extension")),
]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6}
GRIDS = [  # grid, window, cells
    ((7, 11), (3, 5), (3, 4)),  # uneven cells, rows that fill no vector
    ((1, 1), (1, 1), (1, 1)),
    ((1, 9), (1, 17), (1, 9)),
    ((6, 5), (11, 9), (6, 5)),  # a window over the whole grid, a cell for every token
    ((19, 17), (7, 7), (4, 4)),
    ((16, 16), (5, 3), (4, 8)),  # several strips of keys, even cells
    ((24, 32), (3, 3), (12, 8)),  # several tasks of rows for each head
    ((40, 16), (7, 7), (5, 16)),
]
NAMES = ("entropy", "lse", "local", "pooled")


def statistics_and_reference(
    q: Tensor, k: Tensor, grid: tuple, window: tuple, cells: tuple, sharpness: float = 1.0, **options: object
) -> tuple[nk.AttentionStatistics, tuple[Tensor, ...]]:
    found = nk.attention_statistics(
        q, k, grid=grid, window=window, cells=cells, global_sharpness=sharpness, **options
    )  # fmt: skip
    return found, reference.attention_statistics(
        q, k, grid=grid, window=window, cells=cells, global_sharpness=sharpness
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("grid", "window", "cells"), GRIDS, ids=str)
def test_statistics_equal_the_reference(grid, window, cells, dtype, backend):
    for head_size, sharpness in ((5, 1.0), (40, 4.0), (64, 0.5)):
        q, k = queries_and_keys(0, 2, 2, math.prod(grid), math.prod(grid), head_size, dtype)
        found, expected = statistics_and_reference(q * 2, k, grid, window, cells, sharpness, backend=backend)
        assert (found.entropy - expected[0]).abs().max() <= 3 * TOLERANCE[dtype]
        for name, right in zip(NAMES[1:], expected[1:], strict=True):
            assert relative_error(getattr(found, name), right) <= TOLERANCE[dtype], name
        # a far cell's share has its own digits: each row of cells was brought from the maximum it was summed under
        ratio = found.pooled.double() / expected[3]
        assert (ratio[expected[3] > 1e-30] - 1).abs().max() <= 50 * TOLERANCE[dtype]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rising", [True, False])
def test_the_maximum_may_move_at_every_key_and_by_any_amount(rising, backend):
    """Scores that climb by 40 a row of the grid, so that what was summed before is nothing beside what comes."""
    grid, window, cells = (16, 16), (3, 3), (4, 4)
    q = torch.ones(1, 1, 256, 1)
    steps = torch.arange(256.0) // 16 * 40
    k = (steps if rising else steps.flip(0)).reshape(1, 1, 256, 1)
    found, expected = statistics_and_reference(q, k, grid, window, cells, backend=backend)
    assert relative_error(found.pooled, expected[3]) <= 1e-6
    assert relative_error(found.local, expected[2]) <= 1e-6
    assert (found.entropy - expected[0]).abs().max() <= 1e-6
    assert torch.equal(found.pooled.sum(-1).round(decimals=5), torch.ones(1, 1, 256))


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_storage_rounds_and_nothing_else(backend):
    q, k = queries_and_keys(1, 1, 3, 96, 96, 16)
    whole, half = (
        nk.attention_statistics(q, k, grid=(8, 12), window=5, cells=(3, 4), storage=storage, backend=backend)
        for storage in (torch.float32, torch.bfloat16)
    )
    assert torch.equal(whole.entropy, half.entropy)
    assert torch.equal(half.local, whole.local.bfloat16())
    assert torch.equal(half.pooled, whole.pooled.bfloat16())
    S = half.affinity(random_weights(2, 1, 3))
    assert S.local.values.dtype == S.low_rank.u.dtype == torch.float32  # sums of heads are not rounded again


@pytest.mark.skipif(not _native.extension_loaded(), reason="no extension")
def test_no_bit_depends_on_threads_or_runs():
    q, k = queries_and_keys(3, 2, 3, 23 * 17, 23 * 17, 40)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            found.append(nk.attention_statistics(q, k, grid=(23, 17), window=7, cells=(5, 4), backend="cpp"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(getattr(other, name), getattr(found[0], name)) for name in NAMES)


LAYERS = [
    ([(8, 12)], (5, 3), (3, 4)),
    ([(16, 16), (8, 8)], 7, None),
    ([(12, 20), (6, 10), (4, 5)], (5, 7), (2, 3)),
    ([(16, 16), (15, 11), (16, 8)], (3, 5), 4),
    ([(9, 7), (1, 1)], 5, 1),
    ([(24, 24), (7, 9)], (1, 31), 3),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("grids", "window", "cells"), LAYERS, ids=str)
def test_any_weights_and_beta_afterwards_give_what_the_single_operators_give(grids, window, cells, backend):
    pairs = [queries_and_keys(index, 2, 3, h * w, h * w, 8) for index, (h, w) in enumerate(grids)]
    q, k = ([pair[place] for pair in pairs] for place in (0, 1))
    options = {"grids": grids}
    if len(grids) == 1:
        q, k, options = q[0], k[0], {"grid": grids[0]}
    stats = nk.attention_statistics(q, k, window=window, cells=cells, backend=backend, **options)
    for temperature in (0.02, 1.0):
        w = nk.head_weights(stats.entropy, num_keys=stats.num_keys, temperature=temperature)
        local = nk.local_affinity(q, k, w, window=window, backend=backend, **options)
        low_rank = nk.global_affinity(q, k, w, cells=cells, backend=backend, **options)
        S = stats.affinity(w, 0.3, backend=backend)
        assert relative_error(S.local.values, local.values) < 1e-6
        assert relative_error(S.low_rank.u, low_rank.u) < 1e-6
        assert (S.beta, S.local.window, S.low_rank.cells) == (0.3, local.window, low_rank.cells)
        assert torch.equal(stats.affinity(w, 0.0, backend=backend).values, S.local.values)
        assert torch.equal(stats.affinity(w, 1.0, backend=backend).u, S.low_rank.u)


def test_the_window_is_renormalised_after_the_heads_are_summed():
    """A head that looks far away counts for little in the window: normalised by itself it would count as any other."""
    q = torch.zeros(1, 2, 9, 1)
    k = torch.zeros(1, 2, 9, 1)
    q[0, 1], k[0, 1, 8] = 1, 20  # the second head's sink is the last token
    stats = nk.attention_statistics(q, k, grid=(3, 3), window=3, scale=1.0)
    w = torch.tensor([[0.5, 0.5]])
    assert stats.local[0, 1, 0].sum() < 1e-7
    row = stats.affinity(w, 0.0).values[0, 0]
    assert torch.allclose(row[row > 0], torch.full((4,), 0.25), atol=1e-6)


def test_information_of_query_and_cell_is_that_of_maps_summed_by_cell():
    q, k = queries_and_keys(5, 2, 4, 48, 48, 8)
    stats = nk.attention_statistics(q * 3, k, grid=(6, 8), window=3, cells=(3, 2))
    w = nk.head_weights(
        stats.entropy, num_keys=48, criterion="cell_information", pooled=stats.pooled, temperature=0.05, keep=3
    )
    pooled = reference.attention_statistics(q * 3, k, grid=(6, 8), window=(3, 3), cells=(3, 2))[3]
    expected = reference.head_weights(
        reference.attention_map_entropy(pooled), num_keys=6, criterion="information", marginal=pooled.mean(2),
        temperature=0.05, keep=3,
    )  # fmt: skip
    assert torch.allclose(w.double(), expected, atol=1e-5)
    entropy = nk.head_weights(stats.entropy, num_keys=48, temperature=0.05, keep=3)
    assert not torch.allclose(w, entropy, atol=1e-2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sharpness", [1.0, 2.5])
def test_gradients_are_those_of_the_definition(sharpness, backend):
    q, k = (item.requires_grad_() for item in queries_and_keys(6, 2, 2, 20, 20, 3, torch.float64))

    def results(q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        stats = nk.attention_statistics(
            q, k, grid=(4, 5), window=3, cells=(2, 3), global_sharpness=sharpness, backend=backend
        )
        return stats.entropy, stats.lse, stats.local, stats.pooled

    assert torch.autograd.gradcheck(results, (q, k))
    found = torch.autograd.grad(sum((part**2).sum() for part in results(q, k)), (q, k))
    expected = reference.attention_statistics(
        q, k, grid=(4, 5), window=(3, 3), cells=(2, 3), global_sharpness=sharpness
    )
    for one, other in zip(found, torch.autograd.grad(sum((part**2).sum() for part in expected), (q, k)), strict=True):
        assert relative_error(one, other) < 1e-12


def test_a_loss_on_the_affinity_reaches_queries_and_keys():
    q, k = (item.requires_grad_() for item in queries_and_keys(7, 1, 2, 30, 30, 4, torch.float64))

    def loss(stats_first: bool) -> Tensor:
        if stats_first:
            stats = nk.attention_statistics(q, k, grid=(5, 6), window=3, cells=(2, 3))
            S = stats.affinity(nk.head_weights(stats.entropy, num_keys=30), 0.4)
        else:
            entropy, lse = nk.attention_entropy(q, k, return_lse=True)
            w = nk.head_weights(entropy, num_keys=30)
            S = nk.mix(
                nk.global_affinity(q, k, w, grid=(5, 6), cells=(2, 3), lse=lse),
                nk.local_affinity(q, k, w, grid=(5, 6), window=3, lse=lse), 0.4,
            )  # fmt: skip
        return (S.to_dense() ** 2).sum()

    for one, other in zip(*(torch.autograd.grad(loss(first), (q, k)) for first in (True, False)), strict=True):
        assert relative_error(one, other) < 1e-10


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_are_none_are_none_in_everything(backend):
    q, k = queries_and_keys(8, 1, 1, 16, 16, 4)
    q[0, 0, 3] = math.nan
    stats = nk.attention_statistics(q, k, grid=(4, 4), window=3, cells=2, backend=backend)
    for name in NAMES:
        rows = getattr(stats, name)[0, 0].reshape(16, -1)
        assert not rows[3].isfinite().any() or name == "local"
        assert rows[torch.arange(16) != 3].isfinite().all(), name
    assert stats.local[0, 0, 3].isnan().any()


Q, K = torch.zeros(1, 2, 12, 4), torch.zeros(1, 2, 12, 4)
W = torch.full((1, 2), 0.5)


def made(**options: object) -> nk.AttentionStatistics:
    return nk.attention_statistics(Q, K, **{"grid": (3, 4), "window": 3, **options})


REFUSED = {
    "grid of other size": (ValueError, lambda: made(grid=(3, 5)), "grid: expected H · W = 12 tokens"),
    "no grid": (ValueError, lambda: made(grid=None), "grid: expected"),
    "window past the grid": (ValueError, lambda: made(window=7), "window: expected at most"),
    "even window": (ValueError, lambda: made(window=2), "window: expected odd"),
    "cells": (ValueError, lambda: made(cells=5), "cells: expected 1 to 3"),
    "storage": (ValueError, lambda: made(storage=torch.float16), "storage: expected torch.float32 or torch.bfloat16"),
    "sharpness": (ValueError, lambda: made(global_sharpness=0.0), "global_sharpness: expected a number > 0"),
    "backend": (nk.BackendUnavailableError, lambda: made(backend="nope"), "there is no such backend"),
    "keys of another size": (
        ValueError, lambda: nk.attention_statistics(Q, K[:, :, :, :3], grid=(3, 4)), "k: expected batch, heads",
    ),
    "a finer layer": (
        ValueError,
        lambda: nk.attention_statistics([Q, Q], [K, K], grid=(2, 6), grids=[(2, 6), (3, 4)], window=1),
        "expected a grid no finer",
    ),
    "weights of other heads": (ValueError, lambda: made().affinity(torch.ones(1, 3)), "w: expected (B, heads)"),
    "weights of layers": (ValueError, lambda: made().affinity([W, W]), "w: expected 1 tensors"),
    "beta": (ValueError, lambda: made().affinity(W, 1.5), "beta: expected a number in [0, 1]"),
    "no pooled": (
        ValueError, lambda: nk.head_weights(made().entropy, num_keys=12, criterion="cell_information"),
        "pooled: expected attention_statistics",
    ),
    "pooled of other rows": (
        ValueError,
        lambda: nk.head_weights(
            made().entropy, num_keys=12, criterion="cell_information", pooled=torch.ones(1, 2, 11, 4)
        ),
        "pooled: expected (B, heads, N, M) of entropy",
    ),
    "pooled for entropy": (
        ValueError, lambda: nk.head_weights(made().entropy, num_keys=12, pooled=made().pooled), "pooled: expected None",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("error", "call", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_by_name(error, call, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
