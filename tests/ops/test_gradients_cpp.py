"""Gradients of the compiled kernels against the definition: dtypes, geometries, layers, threads."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tests.ops.problems import queries_and_keys, random_weights, relative_error
from tests.ops.test_attention_statistics import GRIDS
from torch import Tensor

import nerve_kernels as nk
from nerve_kernels import _native, reference
from nerve_kernels._operators.attention import score_gradients
from nerve_kernels._operators.dispatch import recording_choices

pytestmark = pytest.mark.skipif(not _native.extension_loaded(), reason=f"no extension: {_native.load_error()}")

TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
Function = Callable[..., tuple[Tensor, ...]]


def pulled(function: Function, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Gradients of the results times seeded numbers."""
    leaves = [item.detach().clone().requires_grad_() for item in inputs]
    results = function(*leaves)
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.randn(item.shape, generator=generator, dtype=torch.float64) for item in results]
    loss = torch.stack([(item.double() * number).sum() for item, number in zip(results, numbers, strict=True)]).sum()
    with recording_choices() as choices:
        found = torch.autograd.grad(loss, leaves)
    for operation, backend in choices:
        assert backend == "cpp", operation
    return list(found)


def compare(ours: Function, definition: Function, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    found = pulled(ours, tuple(item.to(dtype) for item in inputs))
    expected = pulled_by_definition(definition, tuple(item.to(dtype).double() for item in inputs))
    for place, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.dtype == dtype
        # what several operators give is rounded and added up; of few tokens it may be 0
        few = 0.5 * math.sqrt(other.numel()) if inputs[0].shape[2] < 10 else 0.0
        assert float((one.double() - other).norm()) <= TOLERANCE[dtype] * max(few, float(other.norm())), place


def pulled_by_definition(function: Function, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    leaves = [item.clone().requires_grad_() for item in inputs]
    results = function(*leaves)
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.randn(item.shape, generator=generator, dtype=torch.float64) for item in results]
    loss = torch.stack([(item * number).sum() for item, number in zip(results, numbers, strict=True)]).sum()
    return list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("grid", "window", "cells"), GRIDS, ids=str)
def test_gradients_through_statistics(grid, window, cells, dtype):
    for head_size, sharpness in ((5, 1.0), (40, 2.5)) if math.prod(grid) < 500 else ((40, 2.5),):
        q, k = queries_and_keys(0, 1, 2, math.prod(grid), math.prod(grid), head_size)
        options = {"grid": grid, "window": window, "cells": cells, "global_sharpness": sharpness}

        def ours(q: Tensor, k: Tensor, options: dict = options) -> tuple[Tensor, ...]:
            stats = nk.attention_statistics(q, k, **options)
            return stats.entropy, stats.lse, stats.local, stats.pooled

        def definition(q: Tensor, k: Tensor, options: dict = options) -> tuple[Tensor, ...]:
            return reference.attention_statistics(q, k, **options)

        compare(ours, definition, (q, k), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("grid", "window", "cells"), GRIDS[:6], ids=str)
def test_gradients_of_the_single_operators(grid, window, cells, dtype):
    tokens = math.prod(grid)
    q, k = queries_and_keys(1, 2, 3, tokens, tokens, 40)
    w = random_weights(2, 2, 3)

    def ours(q: Tensor, k: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        entropy, lse = nk.attention_entropy(q, k, return_lse=True)
        local = nk.local_affinity(q, k, w, grid=grid, window=window, lse=lse)
        low_rank = nk.global_affinity(q, k, w, grid=grid, cells=cells, lse=lse)
        marginal = nk.attention_marginal(q, k, lse=lse)
        return entropy, local.to_dense(), low_rank.u, marginal

    def definition(q: Tensor, k: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        fused = reference.fuse_attention(q, k, w)
        membership = (reference.cell_average(grid, cells) > 0).double()
        return (
            reference.attention_entropy(q, k),
            reference.local_affinity(q, k, w, grid=grid, window=window),
            fused @ membership,
            reference.attention_marginal(q, k),
        )

    compare(ours, definition, (q, k, w), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 33), (109, 601), (3, 1)])
def test_gradients_where_queries_are_not_as_many_as_keys(queries, keys, dtype):
    q, k = queries_and_keys(3, 2, 2, queries, keys, 7)
    w = random_weights(4, 2, 2)

    def ours(q: Tensor, k: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return nk.attention_entropy(q, k), nk.fuse_attention(q, k, w), nk.attention_marginal(q, k)

    def definition(q: Tensor, k: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        fused = reference.fuse_attention(q, k, w)
        return reference.attention_entropy(q, k), fused, reference.attention_marginal(q, k)

    compare(ours, definition, (q, k, w), dtype)


def test_gradients_over_layers_of_three_grids():
    grids = [(12, 20), (6, 10), (4, 5)]
    pairs = [queries_and_keys(index, 1, 2, h * w, h * w, 8, torch.float64) for index, (h, w) in enumerate(grids)]
    inputs = tuple(item for pair in pairs for item in pair)

    def run(backend: str | None) -> Function:
        def both(*tensors: Tensor) -> tuple[Tensor, ...]:
            stats = nk.attention_statistics(
                list(tensors[::2]), list(tensors[1::2]), grids=grids, window=(5, 7), cells=(2, 3),
                global_sharpness=1.5, backend=backend,
            )  # fmt: skip
            w = nk.head_weights(stats.entropy, num_keys=stats.num_keys)
            S = stats.affinity(w, 0.5, backend=backend)
            return S.local.values, S.low_rank.u

        return both

    for one, other in zip(pulled(run("cpp"), inputs), pulled_by_definition(run("eager"), inputs), strict=True):
        assert relative_error(one, other) < 1e-12


PROBLEM = (23, 17), (7, 5), (5, 4)


def test_no_bit_depends_on_threads_or_runs():
    grid, window, cells = PROBLEM
    tokens = math.prod(grid)
    q, k = queries_and_keys(5, 2, 3, tokens, tokens, 40)
    w, lse = random_weights(6, 2, 3), nk.attention_entropy(q, k, return_lse=True)[1]
    generator = torch.Generator().manual_seed(7)
    a, b = torch.randn(2, *lse.shape, generator=generator)
    local = torch.randn(*lse.shape, math.prod(window), generator=generator)
    pooled = torch.randn(*lse.shape, math.prod(cells), generator=generator)
    sizes = list(grid), list(window), list(cells)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            dense = score_gradients.attention_gradient_cpp(
                q, k, lse, a, b, lse, a, local, pooled, *sizes, 0.2, 2.0
            )  # fmt: skip
            sparse = local_operator_cpp(local[:, 0].contiguous(), q, k, w, lse, *sizes[:2], 0.2, True)
            found.append([*dense, *sparse])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def local_operator_cpp(*arguments: object) -> tuple[Tensor, ...]:
    return torch.ops.nerve_kernels._local_gradient_cpp(*arguments)


def test_masked_keys_and_rows_without_a_number_leave_the_others_alone():
    q, k = queries_and_keys(9, 1, 1, 40, 50, 1)
    q, k = q.abs(), k.clone()
    k[0, 0, 7] = -1e30  # as good as masked
    gradient = pulled(lambda q, k: (nk.attention_entropy(q, k),), (q, k))
    kept = torch.arange(50) != 7
    expected = pulled_by_definition(
        lambda q, k: (reference.attention_entropy(q, k),), (q.double(), k[:, :, kept].double())
    )
    assert gradient[1][0, 0, 7] == 0
    assert relative_error(gradient[1][:, :, kept], expected[1]) < 1e-5
    q[0, 0, 3] = math.nan
    leaves = [q.requires_grad_(), k.requires_grad_()]
    grad_q = torch.autograd.grad(nk.attention_entropy(*leaves).nan_to_num(0).sum(), leaves)[0]
    assert grad_q[0, 0, torch.arange(40) != 3].isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooled": torch.zeros(1, 2, 12, 5)}, "pooled: expected"),
        ({"local": torch.zeros(1, 2, 12, 5)}, "local: expected"),
        ({"a": torch.zeros(1, 2, 11)}, "a: expected the shape and dtype of lse"),
        ({"b": torch.zeros(1, 2, 12, dtype=torch.float64)}, "b: expected the shape and dtype of lse"),
        ({"sharpness": 2.0, "cell_lse": None}, "cell_lse, pooled: expected where the sharpness is not 1"),
        ({"grid": [3, 5]}, "grid: expected the 12 tokens"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
    rows = torch.zeros(1, 2, 12)
    arguments = {
        "q": torch.zeros(1, 2, 12, 4), "k": torch.zeros(1, 2, 12, 4), "lse": rows, "a": rows, "b": rows,
        "cell_lse": rows, "c": rows, "local": torch.zeros(1, 2, 12, 9), "pooled": torch.zeros(1, 2, 12, 4),
        "grid": [3, 4], "window": [3, 3], "cells": [2, 2], "scale": 1.0, "sharpness": 1.0,
    }  # fmt: skip
    score_gradients.attention_gradient_cpp(**arguments)
    with pytest.raises(RuntimeError, match=message):
        score_gradients.attention_gradient_cpp(**arguments | change)
