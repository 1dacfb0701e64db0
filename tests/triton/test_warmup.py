"""nk.warmup: the kernels of the calls to come, under the keys that Triton will look for; nothing without a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import nerve_kernels as nk
from nerve_kernels._triton import availability

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter of Triton compiles nothing", allow_module_level=True)

import triton

from nerve_kernels._arguments import AffinityArguments
from nerve_kernels._triton import compilation
from nerve_kernels._triton.attention import attention_entropy
from nerve_kernels._triton.launch import recording
from nerve_kernels._triton.walk import random_walk

GRID = (8, 8)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Triton takes this machine for one with an H100, and has compiled nothing yet; returns its cache."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(availability, "why_not_here", lambda: None)
    before = getattr(triton.runtime.driver, "_active", None)
    triton.runtime.driver.set_active(compilation.DriverWithoutGpu(("cuda", 90, 32)))
    yield tmp_path
    triton.runtime.driver._active = before


def compiled(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()}


def test_without_a_gpu_nothing_is_compiled() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert nk.warmup(empty(1, 2, 64, 16), empty(1, 2, 64, 16), grid=GRID, window=3) == 0


def test_what_a_call_needs_is_then_there(gpu: Path) -> None:
    q = empty(1, 64, 2, 16, dtype=torch.float16).transpose(1, 2)
    count = nk.warmup(q, q, grid=GRID, window=3, cells=4, jobs=2)
    assert count == 5  # entropy, marginal, local, global and statistics
    there = compiled(gpu)
    assert len(there) >= count
    with recording() as launches:
        attention_entropy.run(q, q, 0.25)
    for launch in launches:
        launch.kernel.device_caches.clear()
        kernel = compilation.compile_launch(launch)
        assert kernel.metadata.target.arch == 90
    assert compiled(gpu) == there
    # another dtype is another kernel
    with recording() as launches:
        attention_entropy.run(q.float(), q.float(), 0.25)
    compilation.compile_launch(launches[0])
    assert compiled(gpu) > there


def test_the_walk_and_its_gradient_are_kernels_of_their_own(gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "compile_launch", lambda launch: None)
    seeds = empty(1, 64, 5)

    def count(**options) -> int:
        return nk.warmup(seeds=seeds, grid=GRID, window=3, cells=4, jobs=1, **options)

    forward, local = count(), count(beta=0.0)
    assert local == forward == 4  # whatever S is made of: packing, preparation, a step, the last step
    assert count(gradients=True) > forward
    with recording() as launches:
        affinity = AffinityArguments(
            empty(1, 64, 9), empty(1, 64, 16), grid=[8, 8], window=[3, 3], cells=[4, 4], beta=0.5
        )
        random_walk.run(seeds, affinity, 0.5, 20, True)
    assert len(compilation.distinct(launches)) == forward


def graph() -> nk.GraphAffinity:
    columns = torch.arange(63).repeat_interleave(2).reshape(63, 2) + torch.tensor([0, 1])
    row_pointers = torch.cat([torch.arange(0, 128, 2), torch.tensor([126])])
    return nk.GraphAffinity(row_pointers, columns.flatten(), torch.full((126,), 0.5))


SPARSE = {
    "stencil": lambda: nk.LocalAffinity(
        torch.full((1, 64, 16), 1 / 16), grid=GRID, window=3, dilations=(1, 2), centre=False
    ),
    "graph": graph,
    "graph and factors": lambda: nk.mix(
        nk.LowRankAffinity(torch.full((1, 64, 16), 1 / 16), grid=GRID, cells=4), graph(), beta=0.5
    ),
}


@pytest.mark.parametrize("name", SPARSE)
def test_the_walk_on_an_affinity_of_any_kind(gpu: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(compilation, "compile_launch", lambda launch: None)
    affinity, seeds = SPARSE[name](), torch.zeros(1, 64, 5)
    count = nk.warmup(seeds=seeds, grid=GRID, affinity=affinity, jobs=1)
    with recording() as launches:
        random_walk.run(seeds, affinity.operator_arguments(), 0.5, 20, True)
    kernels = compilation.distinct(launches)
    assert count == len(kernels) > 0
    assert any("stencil" in one.kernel.__name__ or "graph" in one.kernel.__name__ for one in kernels)
    assert nk.warmup(seeds=seeds, grid=GRID, affinity=affinity, gradients=True, jobs=1) > count


def test_tensors_on_no_gpu_are_planned_for_the_one_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    q = empty(1, 8, 4096, 64)

    def precision() -> str:
        with recording() as launches:
            attention_entropy.run(q, q, 0.125)
        return launches[0].constants["PRECISION"]

    assert precision() == "tf32x3" or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, expected in ((8, "ieee"), (9, "tf32x3"), (12, "ieee")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, major=capability: (major, 0))
        assert precision() == expected


def test_kernels_that_differ_in_numbers_alone_are_one() -> None:
    with recording() as launches:
        for tokens in (64, 128, 4096):  # all multiples of 16
            q = empty(1, 2, tokens, 16)
            attention_entropy.run(q, q, 0.25)
    assert len(launches) == 3
    assert len(compilation.distinct(launches)) == 1


def test_a_recorded_launch_runs_nowhere_and_is_whole() -> None:
    q = torch.zeros(1, 2, 64, 16)  # on a CPU, where no kernel could be started
    with recording() as launches:
        attention_entropy.run(q, q, 0.25)
    assert [launch.programs > 0 for launch in launches] == [True]
    with recording() as later:
        pass
    assert later == []


def test_a_kernel_that_does_not_compile_is_named(gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = iter([{"index": 1, "seconds": 0.1, "error": "CompilationError: no"}])
    monkeypatch.setattr(compilation, "compile_in_processes", lambda *arguments: results)
    q = empty(1, 2, 64, 16)
    with pytest.raises(
        RuntimeError, match="warmup: attention_marginal_kernel cannot be compiled: CompilationError: no"
    ):
        nk.warmup(q, q, grid=GRID, window=3, jobs=2)


def test_an_error_in_a_process_is_a_result() -> None:
    with recording() as launches:
        q = empty(1, 2, 64, 16)
        attention_entropy.run(q, q, 0.25)
    broken = compilation.Launch(**{**vars(launches[0]), "constants": {**launches[0].constants, "ROWS": 3}})
    (result,) = compilation.compile_in_processes([broken], ("cuda", 90, 32), 1)
    assert result["index"] == 0
    assert result["error"].startswith("CompilationError: ")


Q = empty(1, 2, 64, 16)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"grid": (0, 4), "seeds": empty(1, 64, 3)}, ValueError, r"grid: expected H ≥ 1"),
        ({"grid": GRID}, ValueError, r"q, seeds: expected tensors like those to come, got None; give"),
        ({"grid": GRID, "seeds": empty(1, 64, 3), "affinity": 3}, TypeError, r"affinity: expected .*Affinity"),
        (
            {"grid": (4, 4), "seeds": empty(1, 16, 3), "affinity": graph()},
            ValueError,
            r"grid: expected H · W = 64 tokens as affinity has",
        ),
        ({"grid": GRID, "q": Q}, TypeError, r"k: expected a torch.Tensor"),
        ({"grid": GRID, "k": Q}, TypeError, r"q: expected a torch.Tensor"),
        ({"grid": (4, 4), "q": Q, "k": Q}, ValueError, r"grid: expected H · W = 64 tokens as q has"),
        ({"grid": (4, 4), "seeds": empty(1, 64, 3)}, ValueError, r"grid: expected H · W = 64 tokens as seeds has"),
        ({"grid": GRID, "q": Q.double(), "k": Q.double()}, ValueError, r"q: expected torch.float32, .*float64"),
        ({"grid": GRID, "q": empty(1, 2, 64, 512), "k": empty(1, 2, 64, 512)}, ValueError, r"q: expected a head size"),
        ({"grid": GRID, "seeds": empty(64, 3)}, ValueError, r"seeds: expected"),
        ({"grid": GRID, "q": Q, "k": Q, "window": 4}, ValueError, r"window: expected odd"),
        ({"grid": GRID, "q": Q, "k": Q, "cells": 9}, ValueError, r"cells: expected 1 to 8"),
        ({"grid": GRID, "q": Q, "k": Q, "beta": 2}, ValueError, r"beta: expected"),
        ({"grid": GRID, "q": Q, "k": Q, "affinity_dtype": "half"}, TypeError, r"affinity_dtype: expected"),
        ({"grid": GRID, "q": Q, "k": Q, "gradients": 1}, TypeError, r"gradients: expected True or False"),
        ({"grid": GRID, "q": Q, "k": Q, "jobs": 0}, ValueError, r"jobs: expected an int ≥ 1"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        nk.warmup(**arguments)
