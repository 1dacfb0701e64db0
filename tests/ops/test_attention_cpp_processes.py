"""What has to be seen from a process of its own: the other instruction sets, and the memory at full size."""

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


PEAK_MEMORY = """
import resource
import torch
import nerve_kernels as nk

def peak_mebibytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # of kibibytes, on Linux

q, k = torch.randn(1, 8, 4096, 40), torch.randn(1, 8, 4096, 40)
nk.attention_entropy(q[:, :, :300], k[:, :, :300], backend="cpp")
before = peak_mebibytes()
entropy, lse = nk.attention_entropy(q, k, return_lse=True, backend="cpp")
first = peak_mebibytes()
w = nk.head_weights(entropy, num_keys=4096)
nk.local_affinity(q, k, w, grid=(64, 64), window=7, lse=lse, backend="cpp")
nk.global_affinity(q, k, w, grid=(64, 64), cells=16, lse=lse, backend="cpp")
print(first - before, peak_mebibytes() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss has another unit elsewhere")
def test_memory_is_linear_in_the_number_of_tokens() -> None:
    command = [sys.executable, "-c", PEAK_MEMORY]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    entropy, both_affinities = (float(number) for number in finished.stdout.split())
    # one head's map alone would be 64 MiB
    assert entropy <= 16
    assert both_affinities <= 64
