"""csrc/ compiled with warnings as errors and sanitizers, and the tests of the native ops run on that build.

Python itself is not built with sanitizers, so their run-time libraries are preloaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from verification.checks import ROOT

BUILD = ROOT / "build" / "verify"
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"


def native_tests() -> list[str]:
    """The test files of the C++ backend; those that start processes of their own would lose the preloading."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/ops/test_*_cpp.py"))


def library(name: str) -> str:
    """A run-time library of g++."""
    command = ["g++", f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    """Build, then test."""
    shutil.rmtree(BUILD, ignore_errors=True)
    flags = {"CXX": "g++", "CXXFLAGS": f"-Werror {SANITIZERS}"}
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", str(BUILD)]
    subprocess.run(command, cwd=ROOT, env=os.environ | flags, check=True)
    built = next(BUILD.glob("lib*/nerve_kernels/_C*.so"), None)
    if built is None:
        print("error: csrc/ did not compile, see above")
        return 1
    environment = os.environ | {
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": str(built.parents[1]),
        # Tests of threads ask for them. With two from the start MKL's LU, which references use, can wait for ever.
        "OMP_NUM_THREADS": "1",
    }
    loads = "from nerve_kernels import _native; _native.extension_loaded() or exit(f'error: {_native.load_error()}')"
    if subprocess.run([sys.executable, "-c", loads], cwd=ROOT, env=environment, check=False).returncode:
        return 1  # all tests would be skipped, and nothing tested
    # -s: what a sanitizer says goes to where pytest would keep it
    tests = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *native_tests()]
    return subprocess.run(tests, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
