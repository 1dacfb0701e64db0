"""The compiled window product against its definition, written here as the plain loop over the window."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from nerve_kernels import _native

# Where there is a C++ compiler, tests/packaging asserts that the extension was built: this skip cannot hide a failure.
pytestmark = pytest.mark.skipif(not _native.extension_loaded(), reason=f"no extension: {_native.load_error()}")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float64: 1e-14, torch.float32: 5e-7, torch.bfloat16: 4e-3, torch.float16: 5e-4}
# grid, window: even and odd, a window that reaches over the whole grid, one token, one row, one column
SHAPES = [
    ((5, 7), (3, 5)),
    ((8, 8), (7, 7)),
    ((7, 11), (13, 21)),
    ((1, 1), (1, 1)),
    ((1, 9), (1, 5)),
    ((9, 1), (5, 1)),
    ((4, 6), (1, 1)),
]
LABELS = [1, 4, 5, 8, 16, 21, 24, 33, 64, 171]


def window_product(values: Tensor, p: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    result: Tensor = torch.ops.nerve_kernels._window_product_cpp(values, p, grid, window)
    return result


def definition(values: Tensor, p: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """The sum in float64, one place of the window at a time, reading only what lies inside the grid."""
    (height, width), (window_height, window_width) = grid, window
    batch = max(values.shape[0], p.shape[0])
    wide_values = values.double().expand(batch, -1, -1).reshape(batch, height, width, window_height, window_width)
    wide_p = p.double().expand(batch, -1, -1).reshape(batch, height, width, -1)
    out = torch.zeros(batch, height, width, p.shape[2], dtype=torch.float64)
    for dy in range(window_height):
        for dx in range(window_width):
            up, left = dy - window_height // 2, dx - window_width // 2
            rows = slice(max(0, -up), max(0, min(height, height - up)))
            columns = slice(max(0, -left), max(0, min(width, width - left)))
            from_rows = slice(rows.start + up, max(rows.start, rows.stop) + up)
            from_columns = slice(columns.start + left, max(columns.start, columns.stop) + left)
            neighbours = wide_p[:, from_rows, from_columns]
            out[:, rows, columns] += wide_values[:, rows, columns, dy, dx, None] * neighbours
    return out.reshape(batch, height * width, -1)


def random_inputs(
    grid: tuple[int, int], window: tuple[int, int], labels: int, *, batches: tuple[int, int] = (2, 2), **kwargs: Any
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(grid[0] * 1000 + grid[1] * 100 + labels)
    tokens = grid[0] * grid[1]
    values = torch.rand(batches[0], tokens, window[0] * window[1], generator=generator, **kwargs)
    return values, torch.rand(batches[1], tokens, labels, generator=generator, **kwargs)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm()).item()


@pytest.fixture
def restored_thread_count() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("grid", "window"), SHAPES)
@pytest.mark.parametrize("labels", LABELS)
def test_equals_the_definition(grid: tuple[int, int], window: tuple[int, int], labels: int) -> None:
    for dtype in (torch.float32, torch.float64):
        values, p = random_inputs(grid, window, labels, dtype=dtype)
        actual = window_product(values, p, grid, window)
        assert actual.shape == p.shape
        assert relative_error(actual, definition(values, p, grid, window)) < TOLERANCE[dtype]


@pytest.mark.parametrize("p_dtype", DTYPES)
@pytest.mark.parametrize("values_dtype", DTYPES)
def test_every_pair_of_dtypes(values_dtype: torch.dtype, p_dtype: torch.dtype) -> None:
    grid, window = (6, 9), (5, 5)
    for labels in (1, 16, 21):
        values, p = random_inputs(grid, window, labels)
        values, p = values.to(values_dtype), p.to(p_dtype)
        actual = window_product(values, p, grid, window)
        assert actual.dtype == p_dtype
        assert relative_error(actual, definition(values, p, grid, window)) < TOLERANCE[p_dtype]


def test_low_precision_is_summed_in_float32() -> None:
    # 961 terms of 1/961: a bfloat16 sum would stop growing long before 1
    grid, window = (31, 31), (61, 61)
    values = torch.full((1, 961, 61 * 61), 1 / 961).bfloat16()
    p = torch.ones(1, 961, 3).bfloat16()
    torch.testing.assert_close(
        window_product(values, p, grid, window).float(), torch.ones(1, 961, 3), rtol=4e-3, atol=0.0
    )


@pytest.mark.parametrize("batches", [(1, 1), (3, 3), (1, 3), (3, 1)])
def test_a_batch_of_one_serves_the_others(batches: tuple[int, int]) -> None:
    grid, window = (4, 5), (3, 3)
    values, p = random_inputs(grid, window, 21, batches=batches)
    actual = window_product(values, p, grid, window)
    assert actual.shape == (max(batches), 20, 21)
    assert relative_error(actual, definition(values, p, grid, window)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize(("grid", "window"), SHAPES)
def test_values_outside_the_grid_are_never_used(grid: tuple[int, int], window: tuple[int, int]) -> None:
    values, p = random_inputs(grid, window, 5)
    expected = window_product(values, p, grid, window)
    # a window product with P = 1 at one token only shows which entries point inside the grid
    inside = torch.zeros_like(values, dtype=torch.bool)
    for y in range(grid[0]):
        for x in range(grid[1]):
            for dy in range(window[0]):
                for dx in range(window[1]):
                    ny, nx = y + dy - window[0] // 2, x + dx - window[1] // 2
                    inside[:, y * grid[1] + x, dy * window[1] + dx] = 0 <= ny < grid[0] and 0 <= nx < grid[1]
    poisoned = values.masked_fill(~inside, float("nan"))
    assert torch.equal(window_product(poisoned, p, grid, window), expected)


def test_a_nan_spreads_to_its_window_only() -> None:
    grid, window = (9, 9), (3, 3)
    values, p = random_inputs(grid, window, 21, batches=(1, 1))
    p[0, 4 * 9 + 4] = float("nan")
    touched = window_product(values, p, grid, window).isnan().any(-1).reshape(grid)
    expected = torch.zeros(grid, dtype=torch.bool)
    expected[3:6, 3:6] = True
    assert torch.equal(touched, expected)


@pytest.mark.parametrize("labels", [1, 21, 64])
@pytest.mark.usefixtures("restored_thread_count")
def test_bitwise_the_same_for_any_number_of_threads(labels: int) -> None:
    grid, window = (37, 37), (7, 7)
    values, p = random_inputs(grid, window, labels)
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        results.append(window_product(values, p, grid, window))
    assert all(torch.equal(result, results[0]) for result in results)


def test_batched_equals_one_by_one() -> None:
    grid, window = (5, 6), (3, 5)
    values, p = random_inputs(grid, window, 21, batches=(3, 3))
    one_by_one = [window_product(values[i : i + 1], p[i : i + 1], grid, window) for i in range(3)]
    assert torch.equal(window_product(values, p, grid, window), torch.cat(one_by_one))


def test_strided_equals_contiguous() -> None:
    grid, window = (5, 6), (3, 5)
    values, p = random_inputs(grid, window, 21)
    expected = window_product(values, p, grid, window)
    strided_values = values.transpose(0, 2).contiguous().transpose(0, 2)
    strided_p = p.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(window_product(strided_values, strided_p, grid, window), expected)


@pytest.mark.parametrize("labels", [16, 21])
def test_any_storage_offset(labels: int) -> None:
    # P with 16 labels is used where it lies, so its rows may start at any address
    grid, window = (5, 6), (3, 3)
    values, p = random_inputs(grid, window, labels, batches=(1, 1))
    expected = window_product(values, p, grid, window)
    for offset in range(1, 17):
        storage = torch.full((offset + p.numel() + 32,), float("nan"))
        view = storage[offset : offset + p.numel()].view_as(p).copy_(p)
        assert torch.equal(window_product(values, view, grid, window), expected)


def test_nothing_in_nothing_out() -> None:
    assert window_product(torch.rand(1, 6, 9), torch.rand(1, 6, 0), (2, 3), (3, 3)).shape == (1, 6, 0)
    assert window_product(torch.rand(0, 6, 9), torch.rand(0, 6, 4), (2, 3), (3, 3)).shape == (0, 6, 4)


@pytest.mark.parametrize(
    ("values", "p", "grid", "window", "message"),
    [
        (torch.rand(1, 6, 8), torch.rand(1, 6, 4), (2, 3), (3, 3), r"values: expected \(B, 6, 9\), got \(B, 6, 8\)"),
        (torch.rand(1, 5, 9), torch.rand(1, 6, 4), (2, 3), (3, 3), r"values: expected \(B, 6, 9\), got \(B, 5, 9\)"),
        (torch.rand(1, 6, 9), torch.rand(1, 7, 4), (2, 3), (3, 3), "grid: expected the 7 tokens of p, got 2 x 3"),
        (torch.rand(2, 6, 9), torch.rand(3, 6, 4), (2, 3), (3, 3), "p: expected a batch of 2 or 1, got 3"),
        (torch.rand(1, 6, 8), torch.rand(1, 6, 4), (2, 3), (2, 4), "window: expected two odd sizes, got 2 x 4"),
        (torch.rand(6, 9), torch.rand(1, 6, 4), (2, 3), (3, 3), "values, p: expected 3 dimensions, got 2 and 3"),
        (torch.ones(1, 6, 9).int(), torch.rand(1, 6, 4), (2, 3), (3, 3), "values: expected float32, .* got Int"),
    ],
)
def test_refuses_what_it_cannot_compute(
    values: Tensor, p: Tensor, grid: tuple[int, int], window: tuple[int, int], message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        window_product(values, p, grid, window)


IN_ANOTHER_PROCESS = """
import torch
import nerve_kernels
from nerve_kernels import _native
assert _native.extension_loaded(), _native.load_error()
torch.manual_seed(0)
for dtype in (torch.float32, torch.float64):
    for labels in (1, 4, 8, 21, 64, 171):
        values, p = torch.rand(2, 7 * 13, 35, dtype=dtype), torch.rand(2, 7 * 13, labels, dtype=dtype)
        product = torch.ops.nerve_kernels.window_product
        compiled, plain = (product(values, p, (7, 13), (5, 7), backend=name) for name in ("cpp", "eager"))
        torch.testing.assert_close(compiled, plain)
"""


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_every_instruction_set(capability: str) -> None:
    # the choice is made once for a process; on a processor without one, the next lower is tested again
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    finished = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS], env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
