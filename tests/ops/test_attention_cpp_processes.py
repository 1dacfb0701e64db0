"""What has to be seen from a process of its own: the other instruction sets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nerve_kernels import _native

pytestmark = [
    pytest.mark.skipif(not _native.extension_loaded(), reason=f"no extension: {_native.load_error()}"),
    pytest.mark.slow,
]

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_every_instruction_set_passes_the_same_tests(capability: str) -> None:
    # the choice is made once for a process; the best set that the processor has is what the other tests ran on
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    tests = ROOT / "tests" / "ops" / "test_attention_cpp.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(tests)]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout
