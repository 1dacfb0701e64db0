"""Peak extra memory of every operation, forward and backward, at the size of Stable Diffusion's largest layer.

One float32 map of all heads is 512 MiB there. The bounds are declared with each operation, with a generous factor.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
from collections.abc import Iterator

import pytest
import torch
from benchmarks import memory
from benchmarks.operations import sizes
from benchmarks.operations.attention import ENTROPY, FUSE_MAPS, MAP_ENTROPY
from benchmarks.operations.catalog import OPERATIONS
from benchmarks.operations.problems import Problem
from benchmarks.operations.registry import Operation, Size
from benchmarks.operations.statistics import A_PASS_EACH

import nerve_kernels as nk

pytestmark = pytest.mark.skipif(not memory.can_measure("cpu"), reason="no /proc/self/clear_refs on this system")

MEBIBYTE = 2**20
OPERATIONS_AND_BACKENDS = [
    (operation, backend) for operation in OPERATIONS for backend in ("cpp", "eager") if backend in operation.backends
]


def size_for(operation: Operation) -> Size:
    """The largest layer, or the walk on it; explicit maps are 32 MiB at a quarter of its side squared."""
    if operation in (MAP_ENTROPY, FUSE_MAPS):
        return sizes.SD15_32
    return sizes.SD15_64 if operation.sizes[0] in sizes.LAYERS else sizes.walk(64, 21)


@contextlib.contextmanager
def freed_at_once() -> Iterator[None]:
    """Large blocks are the system's again as soon as they are freed.

    glibc keeps them otherwise, for later ones that may not fit into their places: how much a call adds then depends on
    what the process did before, by a factor of three (19 to 54 MiB for the eager chain, which needs 12).
    """
    library = ctypes.CDLL(ctypes.util.find_library("c"))
    if not hasattr(library, "mallopt"):
        yield
        return
    mmap_threshold, largest = -3, 32 * MEBIBYTE
    library.mallopt(mmap_threshold, MEBIBYTE)
    try:
        yield
    finally:
        library.mallopt(mmap_threshold, largest)  # what glibc itself arrives at after a few large blocks


@pytest.mark.parametrize(("operation", "backend"), OPERATIONS_AND_BACKENDS, ids=lambda v: getattr(v, "name", v))
def test_one_call_stays_within_the_declared_memory(operation: Operation, backend: str) -> None:
    size = size_for(operation)
    try:
        call = operation.ours(Problem(size), None if operation.backends == ("eager",) else backend)
        call()
    except nk.BackendUnavailableError as error:
        pytest.skip(str(error))
    with freed_at_once():
        measured = memory.peak_extra_bytes(call)
    assert measured is not None
    assert measured <= operation.extra_bytes(size), f"{measured / MEBIBYTE:.1f} MiB"


def test_declared_memory_is_far_below_a_map() -> None:
    for operation in OPERATIONS:
        if operation.sizes[0] in sizes.LAYERS and operation.name != "fuse_attention":
            assert operation.extra_bytes(sizes.SD15_64) < sizes.SD15_64.map_bytes / 2, operation.name
    assert ENTROPY.extra_bytes(sizes.SD15_64) <= 32 * MEBIBYTE
    assert A_PASS_EACH.extra_bytes(sizes.SD15_64) <= 64 * MEBIBYTE


def test_the_measurement_sees_what_a_call_takes_for_a_moment() -> None:
    def call() -> torch.Tensor:
        return torch.ones(64 * MEBIBYTE, dtype=torch.uint8)[:1].clone()

    call()
    measured = memory.peak_extra_bytes(call)
    assert measured is not None
    assert 60 <= measured / MEBIBYTE <= 68
