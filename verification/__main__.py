"""Everything about native and GPU code that can be proved without a GPU: ``make verify``.

One line of ``CHECKS`` is one check. All run, whatever the others do; a table says at the end what passed, what failed
and what could not run here. Exits non-zero where a check failed or could not run, less the optional ones, which are
named all the same.
"""

from __future__ import annotations

import argparse
import os
import sys

from verification.checks import ROOT, Check, module, path, program, python, run_all

JOBS = os.environ.get("JOBS", "2")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
OLDEST_TRITON = "3.6.0"  # that pyproject.toml promises
BUILD = ROOT / "build" / "verify"
INTERPRETED = {"walk_ptx": "the walk's step", "kernels_ptx": "windows, gathers, gradients and averages"}
EMULATED_TESTS = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", JOBS, "tests/verification/emulation")


def with_oldest_triton(module: str, *options: str) -> list[str]:
    """A module of verification, run with it."""
    return python("-m", "verification.with_triton", OLDEST_TRITON, module, *options)


CHECKS = (
    Check(
        "Triton kernels compiled for every GPU, benchmarks/results/gpu_static.csv",
        python("-m", "verification.static_grid", "--jobs", JOBS),
        rung="3",
        environment=ONE_THREAD,
        needs=(module("triton"),),
    ),
    Check(
        f"the same kernels by Triton {OLDEST_TRITON}, which GPU images have",
        with_oldest_triton(
            "static_grid",
            "--targets",
            "sm_80",
            "sm_90",
            "--jobs",
            JOBS,
            "--out",
            str(BUILD / "gpu_static.csv"),
        ),
        rung="3",
        environment=ONE_THREAD,
        needs=(module("triton"),),
        optional=True,  # without network
    ),
    Check(
        "csrc/cpu against the reference: warnings are errors, AddressSanitizer and UBSan",
        python("-m", "verification.native"),
        rung="1",
        needs=(program("g++"),),
    ),
    Check(
        "CUDA kernels emulated on the CPU, AddressSanitizer and UBSan",
        EMULATED_TESTS,
        rung="4",
        environment=ONE_THREAD | {"EMULATION_SANITIZER": "address,undefined"},
        needs=(program("g++"), path("tests/verification/emulation/test_*.py")),
    ),
    Check(
        "CUDA kernels emulated on the CPU, ThreadSanitizer",
        EMULATED_TESTS,
        rung="4",
        environment=ONE_THREAD | {"EMULATION_SANITIZER": "thread"},
        needs=(program("g++"), path("tests/verification/emulation/test_*.py")),
    ),
    Check(
        "CUDA kernels compiled by nvcc for every GPU, no spills",
        python("-m", "verification.nvcc"),
        rung="5",
        needs=(program("nvcc"), path("csrc/cuda/*.cu")),
    ),
    *(
        Check(
            f"csrc/ compiled against the headers of torch {version}",
            python("-m", "verification.torch_headers", version, "--jobs", JOBS),
            rung="5",
            needs=(program("g++"), program("nvcc")),
            optional=True,  # without network
        )
        # the oldest that pyproject.toml promises, that of GPU images, and what a user gets today
        for version in ("2.10.0", "2.11.0", "newest")
    ),
    Check(
        "Triton kernels on the semantics of their compiled IR (ttsem)",
        python("-m", "ttsem.sanitize", "verification/ttir.py"),
        rung="6",
        needs=(module("ttsem"),),
        optional=True,
    ),
    Check(
        "Bytes of a step over pixels of 480 × 640, within 1.3 times the least",
        python("-m", "verification.stencil_traffic"),
        rung="7",
        environment=ONE_THREAD,
        needs=(module("triton"),),
    ),
    *(
        Check(
            f"Compiled PTX of {what} interpreted: races, bounds, results",
            python("-m", f"verification.{name}"),
            rung="7",
            environment=ONE_THREAD,
            needs=(path(f"verification/{name}.py"), module("triton")),
        )
        for name, what in INTERPRETED.items()
    ),
    *(
        Check(
            f"the same of {what} by Triton {OLDEST_TRITON}",
            with_oldest_triton(name, "--out", str(BUILD / f"{name}.csv")),
            rung="7",
            environment=ONE_THREAD,
            needs=(path(f"verification/{name}.py"), module("triton")),
            optional=True,  # without network
        )
        for name, what in INTERPRETED.items()
    ),
)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="checks whose name holds TEXT, or of one rung")
    text = parser.parse_args().only
    return run_all([check for check in CHECKS if text in check.name or text == check.rung])


if __name__ == "__main__":
    sys.exit(main())
