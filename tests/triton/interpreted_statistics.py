"""attention_statistics in Triton's interpreter: run by test_interpreted.py, which sets TRITON_INTERPRET=1."""

from __future__ import annotations

import math

import pytest
import torch
from tests.triton.interpreted_problems import attention_statistics, growing_keys

import nerve_kernels as nk
from nerve_kernels._operators.attention import attention_statistics as operator
from nerve_kernels._triton.attention import attention_statistics as kernel

ROWS, KEYS = 64, 64  # of a program, in float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("head_size", [3, 40, 80, 160])
def test_head_sizes(head_size, dtype):
    attention_statistics(kernel.run, head_size, dtype)


@pytest.mark.parametrize("sharpness", [1.0, 0.05])
@pytest.mark.parametrize(
    ("grid", "window", "cells"),
    [
        ((1, 1), (1, 1), (1, 1)),
        ((8, 16), (7, 7), (4, 4)),
        ((8, 8), (3, 5), (8, 8)),
        ((7, 11), (3, 5), (7, 11)),
        ((9, 15), (3, 3), (1, 2)),
        ((7, 10), (5, 3), (3, 4)),
        ((2, 70), (1, 3), (2, 3)),
        ((3, 50), (3, 7), (2, 40)),
    ],
    ids=str,
)
def test_grids_windows_and_cells(grid, window, cells, sharpness):
    """One token; cells even and uneven, of one token, of more keys than a tile has, and more cells than a tile has."""
    attention_statistics(
        kernel.run, 16, torch.float32, grid=grid, window=window, cells=cells, sharpness=sharpness, heads=1, batch=2
    )


@pytest.mark.parametrize(("grid", "window"), [((2, 70), (3, 131)), ((6, 10), (11, 19)), ((3, 20), (1, 17))], ids=str)
def test_windows_wider_than_the_grid_or_a_strip(grid, window):
    attention_statistics(kernel.run, 16, torch.float32, grid=grid, window=window, cells=(2, 3))


@pytest.mark.parametrize("sharpness", [1.0, 4.0])
def test_results_in_bfloat16(sharpness):
    attention_statistics(kernel.run, 40, torch.float16, bfloat16=True, sharpness=sharpness)


@pytest.mark.parametrize("rows", [16, 32, 128])
def test_few_and_many_rows_of_a_program(rows, monkeypatch):
    monkeypatch.setattr(kernel, "_blocks", lambda q: (rows, 32, 4, 1))
    attention_statistics(kernel.run, 16, torch.float32, grid=(6, 8), cells=(2, 4), heads=1)


@pytest.mark.parametrize("gain", [4.0, 60.0, 1000.0])
@pytest.mark.parametrize("sharpness", [1.0, 0.1, 3.0])
def test_a_maximum_far_from_the_row_s_own_token(gain, sharpness):
    """4: the reference point holds; 60 and 1000: the keys are read again."""
    attention_statistics(kernel.run, 16, torch.float32, gain=gain, sharpness=sharpness, grid=(16, 12))


@pytest.mark.parametrize("scale", [-0.4, 0.0, 3.0])
def test_any_scale(scale):
    attention_statistics(kernel.run, 16, torch.float32, scale=scale)


def test_masked_keys_and_rows_without_a_number():
    grid, window, cells = (2, 40), (1, 3), (1, 2)
    q, k = torch.ones(1, 1, 80, 1), torch.zeros(1, 1, 80, 1)
    k[0, 0, :70] = -math.inf  # all that the first rows begin with, and their whole windows
    entropy, lse, local, pooled, _ = kernel.run(q, k, [*grid], [*window], [*cells], 1.0, 1.0, False)
    assert (entropy - math.log(10)).abs().max() < 1e-6
    assert (lse - math.log(10)).abs().max() < 1e-6
    assert pooled[0, 0, 5].tolist() == pytest.approx([0, 1])
    assert local[0, 0, 5].tolist() == [0, 0, 0]
    assert local[0, 0, 75].tolist() == pytest.approx([0.1, 0.1, 0.1])
    for result in kernel.run(q, torch.full_like(k, -math.inf), [*grid], [*window], [*cells], 1.0, 1.0, False):
        assert result[0, 0, 5].isnan().any()
    q[0, 0, 3] = math.nan
    for result in kernel.run(q, torch.zeros_like(k), [*grid], [*window], [*cells], 1.0, 1.0, False):
        assert result[0, 0, 3].isnan().any()
        assert not result[0, 0, 4].isnan().any()


def test_scores_of_ten_thousand():
    q, k = torch.full((1, 1, 6, 1), 1e4), torch.tensor([1.0, -1.0, 0.0, 0.5, 0.2, -0.3])[None, None, :, None]
    entropy, lse, local, pooled, _ = kernel.run(q, k, [2, 3], [1, 3], [1, 3], 1.0, 1.0, False)
    assert entropy.max() < 1e-6
    assert (lse - 1e4).abs().max() == 0
    assert pooled[0, 0].tolist() == [[1, 0, 0]] * 6
    assert local[0, 0, 0].tolist() == [0, 1, 0]


def test_results_repeat_bit_for_bit():
    q, k = growing_keys(16, torch.float32, 77, 77)
    first, second = (kernel.run(q, k, [7, 11], [3, 5], [3, 4], 0.25, 2.0, False) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_the_operator_runs_it_and_nothing_to_do_is_done():
    q, k = growing_keys(8, torch.float32, 20, 20)
    options = [4, 5], [3, 3], [2, 2], 0.3, 1.0, False
    for result, eager in zip(
        operator(q, k, *options, "triton"),
        operator(q, k, *options, "eager"),
        strict=True,
    ):
        assert (result - eager).abs().max() < 1e-5
    empty = q[:0]
    assert [len(result) for result in operator(empty, empty, *options, "triton")] == [0] * 5
    assert "triton" in nk.available_backends()


def test_every_slot_holds_a_key_where_cells_are_even():
    for grid, cells, slots in (((64, 64), (16, 16), 4), ((32, 32), (16, 16), 4), ((64, 64), (8, 8), 8)):
        tiling = kernel.Tiling.of([*grid], [*cells], KEYS)
        assert (tiling.aligned, tiling.slots) == (True, slots)
        assert tiling.strips * tiling.tiles * tiling.cells * tiling.slots == grid[0] * grid[1]
    assert not kernel.Tiling.of([37, 37], [16, 16], KEYS).aligned
