"""What has to be seen from a process of its own: other instruction sets, and the walk's memory at full size."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nerve_kernels import _native

pytestmark = [
    pytest.mark.skipif(not _native.extension_loaded(), reason=f"no extension: {_native.load_error()}"),
    pytest.mark.slow,
]

ROOT = Path(__file__).parents[2]
# those that meet every width of a register tile, every dtype and the gradient
TESTS = "(equals_the_reference and odd) or (pair_of_dtypes and float32) or (window_values and odd) or bfloat16_storage"


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_every_instruction_set_passes_the_same_tests(capability: str) -> None:
    # the choice is made once for a process; the best set that the processor has is what the other tests ran on
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    tests = ROOT / "tests" / "ops" / "test_walk_cpp.py"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-k",
        TESTS,
        str(tests),
    ]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout


PEAK_MEMORY = """
import resource
import sys
import torch
import nerve_kernels as nk

def peak_mebibytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # of kibibytes, on Linux

def problem(side, cells, dtype):
    tokens = side * side
    local = nk.LocalAffinity(torch.full((1, tokens, 9), 1 / 9, dtype=dtype), grid=(side, side), window=3)
    u = torch.full((1, tokens, cells**2), cells**-2, dtype=dtype)
    low_rank = nk.LowRankAffinity(u, grid=(side, side), cells=cells)
    return torch.full((1, tokens, 64), 1 / 64), nk.mix(low_rank, local, 0.5)

dtype = getattr(torch, sys.argv[1])
nk.random_walk(*problem(16, 4, dtype), alpha=0.9, steps=3, backend="cpp")
seeds, affinity = problem(256, 16, dtype)
before = peak_mebibytes()
nk.random_walk(seeds, affinity, alpha=0.9, steps=4, backend="cpp")
print(peak_mebibytes() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss has another unit elsewhere")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_walk_takes_two_buffers_of_labels_and_its_result(dtype: str) -> None:
    command = [sys.executable, "-c", PEAK_MEMORY, dtype]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    labels = 256 * 256 * 64 * 4 / 2**20  # 16 MiB; what the cells hold is 64 KiB
    # a U widened to float32 alone would be 64 MiB more
    assert float(finished.stdout) <= 3 * labels + 4


ENDLESS = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # the background jobs of a shell ignore it
import torch
import nerve_kernels as nk
tokens = 64 * 64
local = nk.LocalAffinity(torch.full((1, tokens, 49), 1 / 49), grid=(64, 64), window=7)
low_rank = nk.LowRankAffinity(torch.full((1, tokens, 256), 1 / 256), grid=(64, 64), cells=16)
seeds = torch.full((1, tokens, 21), 1 / 21)
S = nk.mix(low_rank, local, 0.5)
nk.random_walk(seeds, S, alpha=0.5, steps=1, backend="cpp")
print("walking", flush=True)
nk.random_walk(seeds, S, alpha=0.5, steps=10_000_000, backend="cpp")  # a day
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_walk_of_a_day_ends_at_the_first_interrupt() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "walking\n"
            time.sleep(1)  # so that it is within the kernel
            process.send_signal(signal.SIGINT)
            errors = process.communicate(timeout=120)[1]  # seconds, on a machine with nothing else to do
        finally:
            process.kill()
    assert errors.rstrip().endswith("KeyboardInterrupt")
