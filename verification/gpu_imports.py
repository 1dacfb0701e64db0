"""Imports every module that runs on a GPU, and says which backends there are and why others are not."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys

import nerve_kernels as nk


def main() -> int:
    """0 where all could be imported; a missing Triton is no fault of theirs."""
    names = ["benchmarks.gpu_bench", "verification.small_shapes", "verification.gpu_tests"]
    if importlib.util.find_spec("triton") is not None:
        import nerve_kernels._triton

        names += ["verification.compile_kernels", "verification.six_kernels", "benchmarks.gpu_kernels"]
        names += [
            found.name for found in pkgutil.walk_packages(nerve_kernels._triton.__path__, "nerve_kernels._triton.")
        ]
    for name in names:
        importlib.import_module(name)
    nk.show_config()
    print(f"{len(names)} modules imported")
    return 0


if __name__ == "__main__":
    sys.exit(main())
