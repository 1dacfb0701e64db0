"""Programs compiled once per test session, whatever the number of processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock

from .emulated_walk import HERE, compile_program, compiler


@pytest.fixture(scope="session")
def walk_on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The walk of csrc/cuda/ as a program for the CPU."""
    if compiler() is None:
        pytest.skip("g++ is not installed: the CUDA kernels cannot be compiled for the CPU")
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    program = shared / "walk_on_cpu"
    with FileLock(shared / "walk_on_cpu.lock"):
        return program if program.exists() else compile_program(HERE / "walk_on_cpu.cpp", program)
