"""The compiled walk on a lone stencil against its definition: offsets, borders, dtypes, strides, threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from tests.ops.problems import relative_error
from torch import Tensor

from nerve_kernels import _native, reference
from nerve_kernels._operators.walk.cpp_affinity_operator import stencil_walk_cpp
from nerve_kernels.grids import Grid, stencil_neighbours, stencil_offsets

pytestmark = pytest.mark.skipif(not _native.extension_loaded(), reason=f"no extension: {_native.load_error()}")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
OFFSETS = {
    "one window without its centre": stencil_offsets((3, 3), (1,), False),
    "dilations, some past the grid": stencil_offsets((3, 3), (1, 2, 4, 12, 90), False),
    "a wide window": stencil_offsets((5, 7), (1,), True),
    "to one side": [(0, 1), (2, -3), (2, -3)],
    "nowhere": [(100, 0), (0, -100)],
}
# tokens that fill no vector, more than one tile, one row, one column, one token
GRIDS = [(7, 11), (19, 70), (1, 70), (70, 1), (1, 1)]


def inputs(
    grid: Grid, offsets: list[Grid], labels: int, dtype: torch.dtype = torch.float32, batch: int = 2
) -> tuple[Tensor, Tensor]:
    """Seeds, and values that sum to at most 1."""
    generator = torch.Generator().manual_seed(labels)
    tokens = grid[0] * grid[1]
    seeds = torch.rand(batch, tokens, labels, generator=generator, dtype=torch.float64)
    values = torch.rand(batch, tokens, len(offsets), generator=generator, dtype=torch.float64) / len(offsets)
    return seeds.to(dtype), values.to(dtype)


def walk(
    seeds: Tensor,
    values: Tensor,
    grid: Grid,
    offsets: list[Grid],
    clamp: bool = False,
    alpha: float = 0.8,
    steps: int = 3,
    normalize: bool = False,
    start: Tensor | None = None,
) -> Tensor:
    flat = [step for offset in offsets for step in offset]
    result: Tensor = stencil_walk_cpp(seeds, start, values, list(grid), flat, clamp, alpha, steps, normalize)
    return result


@pytest.fixture
def restored_thread_count() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("clamp", [False, True], ids=["zero", "clamp"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", OFFSETS)
def test_every_stencil_equals_the_reference(name: str, grid: Grid, clamp: bool) -> None:
    offsets = OFFSETS[name]
    for labels, dtype in ((1, torch.float64), (9, torch.float32), (30, torch.float32)):
        seeds, values = inputs(grid, offsets, labels, dtype, batch=1)
        dense = reference.stencil_to_dense(values, grid=grid, offsets=offsets, clamp=clamp)
        for alpha, steps in ((0.8, 3), (1.0, 2)):
            result = walk(seeds, values, grid, offsets, clamp, alpha, steps)
            expected = reference.random_walk(seeds, dense, alpha=alpha, steps=steps, normalize=False)
            assert relative_error(result, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stored", DTYPES, ids=str)
def test_every_pair_of_dtypes(stored: torch.dtype, dtype: torch.dtype) -> None:
    grid, offsets = (9, 20), OFFSETS["dilations, some past the grid"]
    seeds, values = inputs(grid, offsets, 21)
    seeds, values = seeds.to(dtype), values.to(stored)
    dense = reference.stencil_to_dense(values, grid=grid, offsets=offsets, clamp=True)
    for normalize in (False, True):
        result = walk(seeds, values, grid, offsets, True, normalize=normalize)
        expected = reference.random_walk(seeds, dense, alpha=0.8, steps=3, normalize=normalize)
        assert result.dtype == dtype
        # what is stored is exact; only the result is rounded
        exact = torch.float64 if torch.float64 in (dtype, stored) else torch.float32
        assert relative_error(result, expected) < max(TOLERANCE[dtype], TOLERANCE[exact])


def test_labels_that_walk_in_several_groups_walk_alike() -> None:
    # 250 planes of so wide a grid are more than walk at a time
    grid, offsets = (2, 40000), OFFSETS["to one side"]
    seeds, values = inputs(grid, offsets, 250, batch=1)
    result = walk(seeds, values, grid, offsets, alpha=1.0, steps=2)
    for label in (0, 13, 200, 249):
        alone = walk(seeds[..., label : label + 1], values, grid, offsets, alpha=1.0, steps=2)
        assert torch.equal(result[..., label : label + 1], alone)


@pytest.mark.parametrize("name", ["a wide window", "dilations, some past the grid"])
def test_values_outside_the_grid_are_never_used(name: str) -> None:
    grid, offsets = (9, 70), OFFSETS[name]
    seeds, values = inputs(grid, offsets, 5)
    _, inside = stencil_neighbours(grid, offsets, False)
    expected = walk(seeds, values, grid, offsets)
    for poison in (torch.nan, torch.inf):
        assert torch.equal(walk(seeds, values.masked_fill(~inside, poison), grid, offsets), expected)


@pytest.mark.parametrize("clamp", [False, True], ids=["zero", "clamp"])
def test_a_nan_spreads_to_those_that_see_it_only(clamp: bool) -> None:
    grid, offsets = (9, 33), OFFSETS["one window without its centre"]
    seeds, values = inputs(grid, offsets, 3, batch=1)
    for y, x in ((0, 0), (4, 31), (8, 32)):
        spoiled = seeds.clone()
        spoiled[0, y * grid[1] + x] = torch.nan
        touched = walk(spoiled, values, grid, offsets, clamp, alpha=1.0, steps=1).isnan().any(-1)[0]
        dense = reference.stencil_to_dense(values, grid=grid, offsets=offsets, clamp=clamp)[0]
        assert torch.equal(touched, dense[:, y * grid[1] + x] != 0)


@pytest.mark.parametrize("name", ["a wide window", "dilations, some past the grid"])
@pytest.mark.usefixtures("restored_thread_count")
def test_bitwise_the_same_for_any_number_of_threads(name: str) -> None:
    grid, offsets = (37, 131), OFFSETS[name]
    seeds, values = inputs(grid, offsets, 10, batch=1)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(walk(seeds, values, grid, offsets, True))
    assert all(torch.equal(result, results[0]) for result in results)


def test_strides_offsets_and_batches_do_not_matter() -> None:
    grid, offsets = (7, 30), OFFSETS["a wide window"]
    seeds, values = inputs(grid, offsets, 9)
    expected = walk(seeds, values, grid, offsets, normalize=True)
    planar = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (seeds, values)]
    assert torch.equal(walk(*planar, grid, offsets, normalize=True), expected)
    moved = [torch.cat([tensor[:, :1], tensor], 1)[:, 1:] for tensor in planar]
    assert torch.equal(walk(*moved, grid, offsets, normalize=True), expected)
    for image in range(2):
        one = slice(image, image + 1)
        assert torch.equal(walk(seeds[one], values[one], grid, offsets, normalize=True), expected[one])
    shared = walk(seeds, values[:1], grid, offsets)
    assert torch.equal(shared, walk(seeds, values[:1].expand_as(values), grid, offsets))


def test_a_walk_goes_on_from_where_it_was() -> None:
    grid, offsets = (7, 30), OFFSETS["one window without its centre"]
    seeds, values = inputs(grid, offsets, 4)
    half = walk(seeds, values, grid, offsets, steps=2)
    assert torch.equal(
        walk(seeds, values, grid, offsets, steps=3, start=half), walk(seeds, values, grid, offsets, steps=5)
    )
    still = walk(seeds, values, grid, offsets, steps=0)
    assert torch.equal(still, seeds)
    assert still.data_ptr() != seeds.data_ptr()


def test_nothing_in_nothing_out() -> None:
    seeds, values = inputs((2, 3), [(0, 1)], 4)
    assert walk(seeds[..., :0], values, (2, 3), [(0, 1)]).shape == (2, 6, 0)
    assert walk(seeds[:0], values[:0], (2, 3), [(0, 1)]).shape == (0, 6, 4)


@pytest.mark.parametrize(
    ("seeds", "values", "grid", "offsets", "message"),
    [
        ((1, 6, 4), (1, 6, 2), (2, 3), [1, 0, 1], r"offsets: expected pairs \(dy, dx\), got 3 numbers"),
        ((1, 6, 4), (1, 6, 2), (2, 3), [1, 0], r"values: expected \(B, 6, 1\), got \(B, 6, 2\)"),
        ((1, 6, 4), (1, 6, 1), (2, 2), [1, 0], "grid: expected the 6 tokens of seeds, got 2 x 2"),
        ((2, 6, 4), (3, 6, 1), (2, 3), [1, 0], "values: expected a batch of 2 or 1, got 3"),
        ((6, 4), (1, 6, 1), (2, 3), [1, 0], r"seeds: expected \(B, N, C\), got 2 dimensions"),
    ],
)
def test_refuses_what_it_cannot_compute(
    seeds: tuple[int, ...], values: tuple[int, ...], grid: Grid, offsets: list[int], message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        stencil_walk_cpp(torch.rand(seeds), None, torch.rand(values), list(grid), offsets, False, 1.0, 1, False)


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_every_instruction_set_passes_the_same_tests(capability: str) -> None:
    # the choice is made once for a process, by torch and by us
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k"]
    finished = subprocess.run(
        [*command, "equals_the_reference or outside_the_grid or sees or number_of_threads", __file__],
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
