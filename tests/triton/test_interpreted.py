"""Runs the kernels and their mutants in Triton's interpreter, in processes of their own.

The switch must be set before triton is imported, and would make every other test in the process interpreted too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")
HERE = Path(__file__).parent
NUMPY_WARNINGS = "ignore:::triton.runtime.interpreter"  # NaN and log 0, where tests ask for them


FILES = ["kernels statistics", "gradients", "walk sparse_walk", "packed_walk", "mutants walk_mutants"]  # of a process


@pytest.mark.parametrize("files", FILES)
def test_in_the_interpreter(files):
    paths = [str(HERE / f"interpreted_{name}.py") for name in files.split()]
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-W", NUMPY_WARNINGS, *paths],
        cwd=HERE.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-8000:] + finished.stderr[-2000:]
