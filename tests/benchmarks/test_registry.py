"""Every operation of the registry, by every backend and every peer, at a small size against its definition."""

from __future__ import annotations

import functools

import pytest
import torch
from benchmarks.measure import missing_modules, relative_error
from benchmarks.operations import sizes
from benchmarks.operations.catalog import OPERATIONS, cases
from benchmarks.operations.problems import Problem
from benchmarks.operations.registry import Operation, Peer
from benchmarks.peers import compiled

import nerve_kernels as nk

pytestmark = pytest.mark.filterwarnings(
    "ignore:Sparse", "ignore:.torch.jit.script", "ignore::scipy.sparse.SparseWarning"
)

PEERS = [(operation, peer) for operation in OPERATIONS for peer in operation.peers]
BACKENDS = [
    (operation, backend) for operation in OPERATIONS for backend in ("cpp", "eager") if backend in operation.backends
]


def small_problem(operation: Operation) -> Problem:
    """One image where a peer knows only one."""
    one_image = any(not peer.same_result for peer in operation.peers)
    return Problem(sizes.SMALL_IMAGE if one_image else sizes.SMALL)


@pytest.mark.parametrize(("operation", "backend"), BACKENDS, ids=lambda value: getattr(value, "name", value))
def test_our_backend_agrees_with_the_definition(operation: Operation, backend: str) -> None:
    problem = small_problem(operation)
    try:
        result = operation.ours(problem, None if operation.backends == ("eager",) else backend)()
    except nk.BackendUnavailableError as error:
        pytest.skip(str(error))
    assert relative_error(result, operation.reference(problem)) <= operation.tolerance


@pytest.mark.parametrize(("operation", "peer"), PEERS, ids=lambda value: value.name)
def test_a_peer_computes_what_it_is_compared_with(
    operation: Operation, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "cpu" not in peer.devices:
        pytest.skip(f"runs on {', '.join(peer.devices)}")
    if missing := missing_modules(peer):
        pytest.skip(f"not installed: {', '.join(missing)}")
    # traced, and not turned into machine code: what Inductor makes of it is compared when it is measured
    quickly = functools.cache(functools.partial(torch.compile, backend="eager", dynamic=False))
    monkeypatch.setattr(compiled, "compiled", quickly)
    problem = small_problem(operation)
    result = peer.prepare(problem)()
    assert torch.isfinite(result).all()
    if peer.same_result:
        assert relative_error(result, operation.reference(problem)) <= operation.tolerance


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_declared_work_and_memory_make_sense(operation: Operation) -> None:
    for size in (*operation.sizes, *operation.quick):
        work = operation.work(size)
        assert work.bytes > 0
        assert min(work.operations, work.exponentials) >= 0
        assert operation.extra_bytes(size) > 0


def test_the_sizes_of_the_field_are_measured() -> None:
    measured = cases()
    layers = {(case.size.grid[0], case.size.heads, case.size.head_size) for case in measured}
    assert {(64, 8, 40), (32, 8, 80), (16, 8, 160), (96, 5, 64), (64, 10, 64)} <= layers
    walks = [case.size for case in measured if case.operation.name == "random_walk"]
    assert {20, 21, 60, 150, 171, 847} <= {size.labels for size in walks}
    assert {1, 8, 32} <= {size.batch for size in walks}
    assert {"N", "C", "L"} <= {case.sweep for case in measured}


def test_a_quick_run_measures_every_operation() -> None:
    assert {case.operation.name for case in cases(quick=True)} == {operation.name for operation in OPERATIONS}


def test_names_of_cases_are_unique() -> None:
    names = [(case.name, case.sweep) for case in cases()]
    assert len(set(names)) == len(names)


def test_an_operation_needs_its_baseline_among_its_peers() -> None:
    with pytest.raises(ValueError, match="expected one of its peers"):
        Operation(**{**OPERATIONS[0].__dict__, "baseline": "nobody"})
