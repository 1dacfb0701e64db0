"""The compiled walk against the reference: what S is made of, dtypes, odd sizes, threads, strides, and its gradient."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.ops.problems import WalkProblem, relative_error, walk_problem
from torch import Tensor

import nerve_kernels as nk
from nerve_kernels import _native, reference
from nerve_kernels._operators.walk import cpp_affinity_operator

# Where there is a C++ compiler, tests/packaging asserts that the extension was built: this skip cannot hide a failure.
pytestmark = pytest.mark.skipif(not _native.extension_loaded(), reason=f"no extension: {_native.load_error()}")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# float64 and float32 by accumulated rounding; what is stored in 8 or 11 bits by one rounding of the result
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
LABELS = [1, 2, 21, 33, 48, 171, 1203]
GRIDS = {  # grid, window, cells: uneven cells, one row, one column, one token, a window over the whole grid
    "odd": ((7, 11), (3, 5), (3, 4)),
    "square": ((37, 37), (7, 7), (16, 16)),
    "one row": ((1, 70), (1, 9), (1, 8)),
    "one column": ((70, 1), (5, 1), (9, 1)),
    "one token": ((1, 1), (1, 1), (1, 1)),
    "largest window": ((6, 9), (11, 17), (6, 9)),
    "few rows of cells": ((24, 20), (3, 3), (2, 5)),
}


def make_problem(name: str, labels: int, dtype: torch.dtype = torch.float64, **options: int) -> WalkProblem:
    grid, window, cells = GRIDS[name]
    return walk_problem(labels, grid, labels=labels, window=window, cells=cells, dtype=dtype, **options)


def affinities(problem: WalkProblem, beta: float = 0.4) -> dict[str, tuple[nk.affinity.Affinity | Tensor, Tensor]]:
    """Each kind of S with the dense matrix that it stands for."""
    dense = problem.dense(beta)
    stored = dense.to(problem.seeds.dtype)
    return {
        "mixed": (problem.mixed(beta), dense),
        "local": (problem.local, problem.dense(0.0)),
        "global": (problem.low_rank, problem.dense(1.0)),
        "dense": (stored, stored.double()),
    }


def walk(problem: WalkProblem, affinity: nk.affinity.Affinity | Tensor, **options: object) -> Tensor:
    settings = {"alpha": 0.85, "steps": 5, "normalize": False, "backend": "cpp"} | options
    result: Tensor = nk.random_walk(problem.seeds, affinity, **settings)  # type: ignore[arg-type]
    return result


@pytest.fixture
def restored_thread_count() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", GRIDS)
def test_every_kind_of_affinity_equals_the_reference(name: str, labels: int) -> None:
    for dtype in (torch.float64, torch.float32) if labels < 1203 else (torch.float32,):
        problem = make_problem(name, labels, dtype, batch=1 if name == "square" else 2)
        for kind, (affinity, dense) in affinities(problem).items():
            expected = reference.random_walk(problem.seeds, dense, alpha=0.85, steps=5, normalize=False)
            assert relative_error(walk(problem, affinity), expected) < TOLERANCE[dtype], kind


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stored", DTYPES, ids=str)
def test_every_pair_of_dtypes(stored: torch.dtype, dtype: torch.dtype) -> None:
    for cells in ((5, 5), (5, 6), None):  # an odd rank, an even one, factors
        problem = walk_problem(1, (11, 13), labels=21, window=(5, 7), cells=cells, dtype=torch.float64)
        exact = {name: dense for name, (_, dense) in affinities(problem).items()}
        rounded = WalkProblem(problem.seeds.to(dtype), problem.low_rank.to(stored), problem.local.to(stored))
        kinds: dict[str, nk.affinity.Affinity | Tensor] = {
            "mixed": rounded.mixed(0.4),
            "local": rounded.local,
            "global": rounded.low_rank,
            "dense": exact["dense"].to(stored),
        }
        for kind, affinity in kinds.items():
            result = walk(rounded, affinity, normalize=True)
            expected = reference.random_walk(problem.seeds, exact[kind], alpha=0.85, steps=5)
            assert result.dtype == dtype
            assert relative_error(result, expected) < max(TOLERANCE[dtype], TOLERANCE[stored]), kind


@pytest.mark.parametrize("labels", [2, 21, 150])
def test_bfloat16_storage_costs_no_more_than_its_rounding(labels: int) -> None:
    """Peaked and flat columns alike: what is constant over the picture stays so through many steps."""
    problem = walk_problem(2, (32, 32), labels=labels, window=(7, 7), cells=(8, 8), dtype=torch.float32)
    problem.seeds[..., 0] = 0.3
    for beta in (0.5, 1.0):
        affinity = problem.mixed(beta) if beta < 1 else problem.low_rank
        low = affinity.to(torch.bfloat16)
        expected = nk.random_walk(problem.seeds.double(), low.to(torch.float64), alpha=0.9, steps=20, normalize=False)
        exact = nk.random_walk(problem.seeds.double(), affinity.to(torch.float64), alpha=0.9, steps=20, normalize=False)
        result = walk(problem, low, alpha=0.9, steps=20)
        assert relative_error(result, exact) < 4e-3
        # beside the rounding of the affinity itself
        assert relative_error(result, expected) < 1e-3
        # a column that is 0.3 everywhere is moved by row sums only, never by rounding what the cells hold
        assert (result[..., 0].double() / expected[..., 0] - 1).abs().max() < 1e-5


@pytest.mark.parametrize("cells", [(3, 4), None], ids=["cells", "factors"])
def test_a_batch_of_one_serves_the_others(cells: tuple[int, int] | None) -> None:
    shared = walk_problem(3, (7, 11), labels=21, batch=3, affinity_batch=1, cells=cells, dtype=torch.float32)
    for kind, (affinity, dense) in affinities(shared).items():
        together = walk(shared, affinity)
        expected = reference.random_walk(shared.seeds, dense, alpha=0.85, steps=5, normalize=False)
        assert relative_error(together, expected) < TOLERANCE[torch.float32], kind
        for image in range(3):
            alone = nk.random_walk(
                shared.seeds[image : image + 1], affinity, alpha=0.85, steps=5, normalize=False, backend="cpp"
            )
            assert torch.equal(alone[0], together[image])


@pytest.mark.parametrize("labels", [5, 21, 150])
@pytest.mark.parametrize("name", ["square", "few rows of cells"])
@pytest.mark.usefixtures("restored_thread_count")
def test_bitwise_the_same_for_any_number_of_threads(name: str, labels: int) -> None:
    problem = make_problem(name, labels, torch.float32)
    factors = walk_problem(4, (24, 25), labels=labels, cells=None, dtype=torch.float32)
    cases = [(problem, affinity) for affinity, _ in affinities(problem).values()]
    cases += [(problem, problem.mixed(0.4).to(torch.bfloat16)), (factors, factors.mixed(0.4))]
    for case, affinity in cases:
        results = []
        for threads in (1, 2, 3, 4, 1):
            torch.set_num_threads(threads)
            results.append(walk(case, affinity, normalize=True))
        assert all(torch.equal(result, results[0]) for result in results)


def strided(tensor: Tensor) -> Tensor:
    """The same numbers with the last two dimensions exchanged in memory."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("stored", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bitwise_the_same_in_any_number_of_calls(
    dtype: torch.dtype, stored: torch.dtype, normalize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = make_problem("odd", 33, dtype, batch=2, affinity_batch=1)
    for affinity in (problem.mixed(0.4).to(stored), problem.dense(0.4).to(stored)):
        expected = walk(problem, affinity, steps=11, normalize=normalize)
        for steps_per_call in (1, 4):
            monkeypatch.setattr(cpp_affinity_operator, "MIN_WORK_PER_STEP", 2**40)
            monkeypatch.setattr(cpp_affinity_operator, "WORK_PER_CALL", steps_per_call * 2**40)
            result = walk(problem, affinity, steps=11, normalize=normalize)
            assert torch.equal(result, expected)
            assert result.dtype == dtype
        monkeypatch.undo()


def test_strided_equals_contiguous() -> None:
    for cells in ((3, 4), None):
        problem = walk_problem(5, (7, 12), labels=21, batch=2, window=(3, 5), cells=cells, dtype=torch.float32)
        v = None if problem.low_rank.v is None else strided(problem.low_rank.v)
        moved = WalkProblem(
            strided(problem.seeds),
            nk.LowRankAffinity(strided(problem.low_rank.u), v, grid=(7, 12), cells=cells),
            nk.LocalAffinity(strided(problem.local.values), grid=(7, 12), window=(3, 5)),
        )
        dense = problem.dense(0.4).float()
        assert torch.equal(walk(moved, moved.mixed(0.4)), walk(problem, problem.mixed(0.4)))
        assert torch.equal(walk(moved, strided(dense)), walk(problem, dense))


def test_any_storage_offset() -> None:
    problem = walk_problem(6, (6, 8), labels=16, window=(3, 3), cells=(2, 4), dtype=torch.float32)
    expected = walk(problem, problem.mixed(0.4))

    def shifted(tensor: Tensor, offset: int) -> Tensor:
        storage = torch.full((offset + tensor.numel() + 32,), float("nan"))
        return storage[offset : offset + tensor.numel()].view_as(tensor).copy_(tensor)

    for offset in (1, 3, 7, 15):
        moved = WalkProblem(
            shifted(problem.seeds, offset),
            nk.LowRankAffinity(shifted(problem.low_rank.u, offset), grid=(6, 8), cells=(2, 4)),
            nk.LocalAffinity(shifted(problem.local.values, offset), grid=(6, 8), window=(3, 3)),
        )
        assert torch.equal(walk(moved, moved.mixed(0.4)), expected)


def test_few_and_many_steps_and_no_neighbours() -> None:
    problem = make_problem("odd", 21, torch.float32)
    mixed, dense = affinities(problem)["mixed"]
    assert torch.equal(walk(problem, mixed, steps=0), problem.seeds)
    assert torch.equal(walk(problem, mixed, alpha=0.0, steps=4), problem.seeds)
    for steps in (0, 1, 2, 20):
        for normalize in (False, True):
            expected = reference.random_walk(problem.seeds, dense, alpha=0.85, steps=steps, normalize=normalize)
            assert relative_error(walk(problem, mixed, steps=steps, normalize=normalize), expected) < 1e-6


def test_a_row_of_zeros_stays_and_nothing_is_an_answer_too() -> None:
    seeds = torch.zeros(1, 4, 2)
    seeds[0, 0] = torch.tensor([0.3, 0.7])
    stay = nk.LocalAffinity(torch.ones(1, 4, 1), grid=(2, 2), window=1)
    result = nk.random_walk(seeds, stay, alpha=0.5, steps=3, backend="cpp")
    torch.testing.assert_close(result, seeds)
    for shape in ((0, 4, 2), (1, 4, 0)):
        assert nk.random_walk(torch.zeros(shape), stay, alpha=0.5, steps=3, backend="cpp").shape == shape


def test_a_nan_goes_where_its_neighbours_are_and_nowhere_else() -> None:
    problem = make_problem("square", 21, torch.float32)
    problem.seeds[0, 20 * 37 + 18, 4] = float("nan")
    touched = walk(problem, problem.local, steps=2).isnan().reshape(37, 37, 21)
    expected = torch.zeros(37, 37, dtype=torch.bool)
    expected[14:27, 12:25] = True
    assert torch.equal(touched[..., 4], expected)
    assert not touched[..., :4].any()
    assert not touched[..., 5:].any()
    for affinity in (problem.low_rank, problem.low_rank.to(torch.bfloat16)):
        everywhere = walk(problem, affinity, steps=2).isnan()
        assert everywhere[..., 4].all()
        assert not everywhere[..., :4].any()


def test_values_outside_the_grid_are_never_used() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        problem = make_problem("largest window", 5, dtype)
        values = problem.local.values
        poisoned = nk.LocalAffinity(values.masked_fill(values == 0, float("nan")), grid=(6, 9), window=(11, 17))
        assert torch.equal(walk(problem, poisoned), walk(problem, problem.local))


def gradients(problem: WalkProblem, kind: str, backend: str, normalize: bool) -> list[Tensor]:
    parts = [problem.seeds, problem.local.values, problem.low_rank.u, problem.dense(0.4).to(problem.seeds.dtype)]
    if problem.low_rank.v is not None:
        parts.append(problem.low_rank.v)
    leaves = [part.clone().requires_grad_() for part in parts]
    grid, window = problem.local.grid, problem.local.window
    low_rank = nk.LowRankAffinity(leaves[2], *leaves[4:], grid=grid, cells=problem.low_rank.cells)
    local = nk.LocalAffinity(leaves[1], grid=grid, window=window)
    affinity = {"mixed": nk.mix(low_rank, local, 0.4), "local": local, "global": low_rank, "dense": leaves[3]}[kind]
    result = nk.random_walk(leaves[0], affinity, alpha=0.8, steps=7, normalize=normalize, backend=backend)
    weights = torch.rand(result.shape, generator=torch.Generator().manual_seed(0), dtype=result.dtype)
    (result * weights).sum().backward()
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize("kind", ["mixed", "local", "global", "dense"])
@pytest.mark.parametrize("cells", [(3, 4), (7, 12), (2, 3), None], ids=str)
def test_gradients_equal_those_of_eager(cells: tuple[int, int] | None, kind: str) -> None:
    for dtype, affinity_batch, labels in ((torch.float64, 1, 21), (torch.float32, 2, 5)):
        problem = walk_problem(
            7, (7, 12), labels=labels, batch=2, affinity_batch=affinity_batch, window=(3, 5), cells=cells, dtype=dtype
        )
        compiled = gradients(problem, kind, "cpp", normalize=labels > 5)
        plain = gradients(problem, kind, "eager", normalize=labels > 5)
        assert len(compiled) == len(plain) > 1
        for ours, theirs in zip(compiled, plain, strict=True):
            assert relative_error(ours, theirs) < (1e-13 if dtype == torch.float64 else 2e-6)


@pytest.mark.usefixtures("restored_thread_count")
def test_gradients_are_bitwise_the_same_for_any_number_of_threads() -> None:
    problem = walk_problem(8, (19, 17), labels=21, window=(5, 5), cells=(4, 4), dtype=torch.float32)
    compiled = torch.ops.nerve_kernels._window_gradient_cpp
    runs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        # G's gradient is the adjoint walk itself; those of the factors end in torch's matrix product
        runs.append((gradients(problem, "mixed", "cpp", normalize=False)[0], compiled(
            problem.seeds, problem.seeds, (19, 17), (5, 5)
        )))  # fmt: skip
    assert all(torch.equal(one, other) for run in runs for one, other in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("labels", [1, 21, 33])
@pytest.mark.parametrize("name", GRIDS)
def test_the_gradient_of_window_values_equals_its_definition(name: str, labels: int) -> None:
    grid, window, _ = GRIDS[name]
    problem = make_problem(name, labels, batch=2)
    left = problem.seeds.flip(0, 1)
    products = (left @ problem.seeds.transpose(1, 2)).flatten(1)
    rows = nk.LocalAffinity(torch.zeros(2, grid[0] * grid[1], window[0] * window[1]), grid=grid, window=window)
    neighbour, inside = nk.grids.window_neighbours(rows.grid, rows.window)
    at = torch.arange(neighbour.shape[0])[:, None] * neighbour.shape[0] + neighbour
    expected = torch.where(inside, products[:, at], 0)
    for dtype in DTYPES:
        result = torch.ops.nerve_kernels._window_gradient_cpp(left.to(dtype), problem.seeds.to(dtype), grid, window)
        assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert relative_error(result, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.rand(1, 6, 8)}, r"values: expected \(B, 6, 9\), got \(B, 6, 8\)"),
        ({"u": torch.rand(1, 5, 4)}, r"u: expected \(B, 6, 4\), got \(B, 5, 4\)"),
        ({"u": torch.rand(3, 6, 4)}, "u: expected a batch of 2 or 1, got 3"),
        ({"u": torch.rand(1, 6, 3)}, "cells: expected as many as the columns of u, 3, got 2 x 2"),
        ({"cells": (3, 2)}, "cells: expected at most one per token"),
        ({"window": (2, 3)}, "window: expected two odd sizes, got 2 x 3"),
        ({"grid": (2, 4)}, "grid: expected the 6 tokens of seeds, got 2 x 4"),
        ({"seeds": torch.rand(6, 3)}, r"seeds: expected \(B, N, C\), got 2 dimensions"),
        ({"seeds": torch.ones(2, 6, 3).int()}, "seeds: expected float32, .* got Int"),
        ({"values": None, "u": None}, "dense: expected either it or its parts"),
        ({"dense": torch.rand(1, 6, 6)}, "dense: expected either it or its parts"),
        ({"start": torch.rand(1, 6, 3)}, "start: expected the batch of seeds, 2, got 1"),
        ({"steps": -1}, "steps: expected 0 or more, got -1"),
    ],
)
def test_refuses_what_it_cannot_compute(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "seeds": torch.rand(2, 6, 3),
        "start": None,
        "values": torch.rand(1, 6, 9),
        "u": torch.rand(1, 6, 4),
        "v": None,
        "dense": None,
        "row_pointers": None,
        "columns": None,
        "grid": (2, 3),
        "window": (3, 3),
        "cells": (2, 2),
        "beta": 0.5,
        "alpha": 0.9,
        "steps": 2,
        "normalize": False,
    }
    with pytest.raises(RuntimeError, match=message):
        torch.ops.nerve_kernels._random_walk_cpp(**(arguments | change))
