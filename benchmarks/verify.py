"""Everything about native and GPU code that can be proved without a GPU: ``make verify``.

One line of ``STAGES`` is one stage. All run, whatever the others do; a table says at the end what passed, what failed
and what could not run here. Exits non-zero where a stage failed or could not run, less the optional ones, which are
named all the same.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from benchmarks.stages import Stage, module, path, program, python, run_stage, summary

JOBS = os.environ.get("JOBS", "2")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
EMULATED_TESTS = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", JOBS, "tests/emulation")

STAGES = (
    Stage(
        "Triton kernels compiled for every GPU, benchmarks/results/gpu_static.csv",
        python("-m", "benchmarks.gpu_static", "--jobs", JOBS),
        rung="3",
        environment=ONE_THREAD,
        needs=(module("triton"),),
    ),
    Stage(
        "csrc/cpu: warnings are errors, tests under AddressSanitizer and UBSan",
        python("-m", "benchmarks.verify_native"),
        rung="-",
        needs=(program("g++"),),
    ),
    Stage(
        "CUDA kernels emulated on the CPU, AddressSanitizer and UBSan",
        EMULATED_TESTS,
        rung="4",
        environment=ONE_THREAD | {"EMULATION_SANITIZER": "address,undefined"},
        needs=(program("g++"), path("tests/emulation/test_*.py")),
    ),
    Stage(
        "CUDA kernels emulated on the CPU, ThreadSanitizer",
        EMULATED_TESTS,
        rung="4",
        environment=ONE_THREAD | {"EMULATION_SANITIZER": "thread"},
        needs=(program("g++"), path("tests/emulation/test_*.py")),
    ),
    Stage(
        "CUDA kernels compiled by nvcc for every GPU, no spills",
        python("-m", "benchmarks.gpu_nvcc"),
        rung="5",
        needs=(program("nvcc"), path("csrc/cuda/*.cu")),
    ),
    Stage(
        "Triton kernels on the semantics of their compiled IR (ttsem)",
        python("-m", "ttsem.sanitize", "benchmarks/gpu_ttir.py"),
        rung="6",
        needs=(module("ttsem"),),
        optional=True,
    ),
    Stage(
        "Compiled PTX interpreted: races, bounds, bytes",
        python("-m", "benchmarks.gpu_ptx"),
        rung="7",
        environment=ONE_THREAD,
        needs=(path("benchmarks/gpu_ptx.py"),),
    ),
)


def verify(stages: Sequence[Stage]) -> int:
    """Run them all; 1 where any failed."""
    outcomes = [run_stage(stage) for stage in stages]
    failures = [outcome for outcome in outcomes if outcome.is_failure]
    print("\n" + summary(outcomes))
    print(f"\n{len(outcomes)} stages, {len(failures)} failed or could not run")
    return 1 if failures else 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="stages whose name holds TEXT, or of one rung")
    text = parser.parse_args().only
    return verify([stage for stage in STAGES if text in stage.name or text == stage.rung])


if __name__ == "__main__":
    sys.exit(main())
