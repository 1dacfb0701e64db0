"""The harness itself: what works on a GPU works in it, and what hangs or is undefined there ends with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from .emulated_walk import HERE, compile_program, compiler, run

FAULTS = {
    "barrier in a branch": "two different __syncthreads in one phase",
    "barrier of one warp": "a barrier that not all threads reach",
    "grid barrier of one block": "a grid barrier that not all blocks reach",
    "a counter that none raises": "a number that none writes",
    "shuffle with a lane missing": "the mask of a warp function names a lane that has exited",
    "shuffle from outside the mask": "a shuffle reads a lane that is not in its mask",
}


@pytest.fixture(scope="module")
def harness_checks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if compiler() is None:
        pytest.skip("g++ is not installed: the CUDA kernels cannot be compiled for the CPU")
    return compile_program(HERE / "harness_checks.cpp", tmp_path_factory.mktemp("harness") / "harness_checks")


def test_barriers_and_shuffles_and_their_misuse(harness_checks: Path) -> None:
    for seed in range(10):
        for name in ("shuffles", "barriers", "a counter"):
            finished = run(harness_checks, name, seed)
            assert finished.returncode == 0, f"{name}, schedule {seed}: {finished.stderr}"
        for name, fault in FAULTS.items():
            finished = run(harness_checks, name, seed)
            assert finished.returncode == 3, f"{name}, schedule {seed}"
            assert fault in finished.stderr
