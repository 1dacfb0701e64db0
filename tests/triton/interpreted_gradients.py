"""Gradients of q and k in Triton's interpreter, and mutants that must fail: run by test_interpreted.py."""

from __future__ import annotations

import pytest
import torch
from tests.ops.problems import queries_and_keys, random_weights, relative_error
from tests.triton.interpreted_problems import attention_gradient, local_gradient
from tests.triton.mutation import kernels_with
from torch import Tensor

import nerve_kernels as nk
from nerve_kernels._operators.dispatch import recording_choices
from nerve_kernels._triton.attention import attention_gradient as kernel
from nerve_kernels._triton.attention import local_gradient as local_kernel


@pytest.mark.parametrize(
    ("head_size", "dtype"),
    [(3, torch.float32), (40, torch.float16), (80, torch.float32), (160, torch.float16)],
    ids=str,
)
def test_head_sizes(head_size, dtype):
    attention_gradient(kernel.run, head_size, dtype, heads=1)


@pytest.mark.parametrize(
    ("grid", "window", "cells"),
    [((1, 1), (1, 1), (1, 1)), ((8, 8), (7, 7), (4, 4)), ((5, 7), (9, 13), (5, 7)), ((2, 40), (3, 71), (2, 7))],
    ids=str,
)
@pytest.mark.parametrize(("parts", "sharpness"), [("terms local pooled", 2.0), ("pooled", 1.0), ("terms", 1.0)])
def test_grids_windows_cells_and_what_is_given(grid, window, cells, parts, sharpness):
    attention_gradient(
        kernel.run, 16, torch.float32, grid=grid, window=window, cells=cells, parts=parts, sharpness=sharpness, heads=1
    )


@pytest.mark.parametrize("queries", [1, 33])
def test_queries_that_are_not_as_many_as_keys(queries):
    attention_gradient(kernel.run, 8, torch.float32, grid=(1, 70), cells=(1, 70), parts="pooled", queries=queries)


@pytest.mark.parametrize("shift", [-300.0, 300.0])
def test_scores_far_from_zero(shift):
    """A token that is not there has a score of 0, of which p would be infinite, or far below all others."""
    attention_gradient(kernel.run, 8, torch.float32, shift=shift, heads=1)


@pytest.mark.parametrize(("grid", "window"), [((1, 1), (1, 1)), ((1, 9), (1, 17)), ((3, 4), (5, 7))], ids=str)
@pytest.mark.parametrize(("normalize", "dtype"), [(True, torch.float32), (False, torch.float16)], ids=str)
def test_windows_alone(grid, window, normalize, dtype):
    local_gradient(local_kernel.run, 8, dtype, grid=grid, window=window, normalize=normalize, batch=2)


def test_the_operators_run_it_and_results_repeat():
    q, k = (item.requires_grad_() for item in queries_and_keys(0, 1, 2, 20, 20, 8))
    w = random_weights(1, 1, 2)

    def gradients(backend: str) -> list[Tensor]:
        options = {"grid": (4, 5), "backend": backend}
        entropy, lse = nk.attention_entropy(q, k, return_lse=True, backend=backend)
        results = [
            entropy, nk.attention_marginal(q, k, lse=lse, backend=backend),
            nk.fuse_attention(q, k, w, lse=lse, backend=backend),
            nk.local_affinity(q, k, w, window=3, lse=lse, **options).values,
            nk.global_affinity(q, k, w, cells=2, lse=lse, **options).u,
        ]  # fmt: skip
        stats = nk.attention_statistics(q, k, window=3, cells=2, global_sharpness=2.0, **options)
        results += [stats.entropy, stats.local, stats.pooled]
        with recording_choices() as choices:
            found = torch.autograd.grad(sum(item.square().sum() for item in results), (q, k))
        assert {choice for _, choice in choices} == {backend}
        assert len(choices) == 6
        return list(found)

    first, second, eager = gradients("triton"), gradients("triton"), gradients("eager")
    for one, other, expected in zip(first, second, eager, strict=True):
        assert torch.equal(one, other)
        assert relative_error(one, expected) < 5e-6
    empty = q[:0].detach().requires_grad_()
    assert (
        torch.autograd.grad(nk.attention_entropy(empty, empty, backend="triton").sum(), empty)[0].shape == empty.shape
    )


# what is replaced, by what, options of the problem
MUTANTS = {
    "the last of the other side are forgotten": (
        "range(0, other_count, OTHER)", "range(0, other_count - OTHER, OTHER)", {},
    ),
    "keys that are not there count": ("d = tl.where(key_valid, d, 0.0)", "pass", {"shift": -300.0, "heads": 1}),
    "the rest of the head is forgotten": ("total_rest * scale", "total_rest * 0", {}),
    "a column of the window is shifted": ("+ WINDOW_COLUMNS // 2\n", "+ WINDOW_COLUMNS // 2 + 1\n", {}),
    "windows near by are taken for far": ("+ WINDOW_ROWS // 2)\n", "- 1)\n", {"grid": (11, 7), "window": (7, 3)}),
    "cells as if they were even": (
        "((key // width + 1) * CELL_ROWS - 1) // height", "key // width // (height // CELL_ROWS)", {},
    ),
    "one head's gradients of cells for all": ("head * pooled_head", "head", {}),
    "sharp cells are those that are not": ("scale * sharpness", "scale", {"sharpness": 2.0}),
    "the factor of sharp cells is forgotten": ("* LOG2_E) * sharpness", "* LOG2_E)", {"sharpness": 2.0}),
    "dk is of the scores' queries": ("total * scale", "total", {}),
    "x is not clamped": ("tl.maximum(x, -256.0)", "tl.maximum(x, -1.0)", {}),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_fails(mutant, tmp_path):
    original, replacement, options = MUTANTS[mutant]
    name = "attention_gradient"
    with kernels_with(name, name, original, replacement, tmp_path) as broken, pytest.raises(AssertionError):
        attention_gradient(broken, 40, torch.float32, **options)


LOCAL_MUTANTS = {
    "dk by the window of the token itself": ("transposed=True", "transposed=False"),
    "the sum of a row is a constant": ("(grad - expected) / mass", "grad / mass"),
    "heads are weighed alike": ("factor = scale * weight.unsqueeze(-1)", "factor = scale"),
}


@pytest.mark.parametrize("mutant", LOCAL_MUTANTS)
def test_a_mutant_of_windows_fails(mutant, tmp_path):
    original, replacement = LOCAL_MUTANTS[mutant]
    name = "local_gradient"
    with kernels_with(name, name, original, replacement, tmp_path) as broken, pytest.raises(AssertionError):
        local_gradient(broken, 8, torch.float32)
